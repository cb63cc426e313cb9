"""Checkpoints of the expressive leaky memory neuron as the authors' code writes them, versions 1 and 2.

Their files hold constants beside the weights: time constants of synapses or branches, all one, and which input a
synapse is of, which the configuration says here. The first layer of their network has the branches' columns first.

Facts: AaronSpieler/elmneuron at 52e68a6, expressive_leaky_memory_neuron.py and ..._v2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_CONSTANTS = "tau_s", "tau_b", "input_to_synapse_indices", "valid_indices_mask"
_NAMES = {
    "_proto_w_s": "neuron.synapses.weight",
    "_proto_tau_m": "neuron.tau_logits",
    "mlp.network.0.bias": "neuron.input_proj.bias",
    "mlp.network.2.bias": "neuron.bias",
    "w_y.weight": "head.weight",
    "w_y.bias": "head.bias",
}


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' neuron."""
    return {"_proto_w_s", "_proto_tau_m"} <= state_dict.keys()


def implied(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The version, which decides the gain: its constants have a name of their own."""
    return {"version": 2 if "tau_b" in state_dict else 1}


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and layouts -> the zoo's.

    Raises:
        ValueError: for time constants of synapses or branches that differ.
    """
    for name in ("tau_s", "tau_b"):
        if name in state_dict and (state_dict[name] != state_dict[name][0]).any():
            raise ValueError(f"{name} must be one time constant for all, as tau_branch is, got {state_dict[name]}")
    if state_dict.keys() - _NAMES.keys() - set(_CONSTANTS) != {"mlp.network.0.weight", "mlp.network.2.weight"}:
        raise ValueError(f"the network must have one hidden layer, got the tensors {', '.join(sorted(state_dict))}")
    first, second = state_dict["mlp.network.0.weight"], state_dict["mlp.network.2.weight"]
    branches = first.shape[1] - len(state_dict["_proto_tau_m"])
    converted = {ours: state_dict[theirs] for theirs, ours in _NAMES.items()}
    converted["neuron.input_proj.weight"] = first[:, :branches].contiguous()
    converted["neuron.W_in"] = first[:, branches:].T.contiguous()
    converted["neuron.W_out"] = second.T.contiguous()
    return converted

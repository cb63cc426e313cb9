"""Checkpoints of the first xLSTM as the authors' package writes them (xLSTMLMModel); transformers has none.

Norms hold what is added to 1, block-diagonal matrices their outputs first. The sLSTM's layer calls its two gates by
each other's names: what comes from "fgate" is the input gate. Its recurrent weights lie in one of two orders, that of
the CUDA cell (heads, inputs, gates x outputs) or of the plain one (heads, gates x outputs, inputs); its biases
likewise.

Facts: NX-AI/xlstm at 032a6fb, blocks/slstm/{layer,cell}.py, components/ln.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.checkpoints.convert.rename import rename

_STACK = "xlstm_block_stack."
_NAMES = [  # published, ours
    ("token_embedding.", "embedding."),
    ("lm_head.", "head."),
    (f"{_STACK}post_blocks_norm.", "norm."),
    (f"{_STACK}blocks.#.xlstm_norm.", "blocks.#.norm."),
    (f"{_STACK}blocks.#.ffn_norm.", "blocks.#.mlp_norm."),
    (f"{_STACK}blocks.#.ffn.proj_down.", "blocks.#.mlp.w2."),
    (f"{_STACK}blocks.#.xlstm.proj_up.", "blocks.#.mixer.up_proj."),
    (f"{_STACK}blocks.#.xlstm.proj_down.", "blocks.#.mixer.out_proj."),
    (f"{_STACK}blocks.#.xlstm.conv1d.conv.", "blocks.#.mixer.conv1d."),
    (f"{_STACK}blocks.#.xlstm.learnable_skip", "blocks.#.mixer.skip"),
    (f"{_STACK}blocks.#.xlstm.mlstm_cell.igate.", "blocks.#.mixer.cell.i_proj."),
    (f"{_STACK}blocks.#.xlstm.mlstm_cell.fgate.", "blocks.#.mixer.cell.f_proj."),
    (f"{_STACK}blocks.#.xlstm.mlstm_cell.outnorm.", "blocks.#.mixer.cell.norm."),
    (f"{_STACK}blocks.#.xlstm.group_norm.", "blocks.#.mixer.norm."),
    (f"{_STACK}blocks.#.xlstm.fgate.", "blocks.#.mixer.i_gate."),
    (f"{_STACK}blocks.#.xlstm.igate.", "blocks.#.mixer.f_gate."),
    (f"{_STACK}blocks.#.xlstm.zgate.", "blocks.#.mixer.z_gate."),
    (f"{_STACK}blocks.#.xlstm.ogate.", "blocks.#.mixer.o_gate."),
    (f"{_STACK}blocks.#.xlstm.", "blocks.#.mixer."),
    (f"{_STACK}", ""),
]


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' language model."""
    return f"{_STACK}blocks.0.xlstm_norm.weight" in state_dict


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and layouts -> the zoo's."""
    renamed, converted = rename(state_dict, _NAMES), {}
    for key, tensor in renamed.items():
        layer, _, name = key.rpartition(".")
        mixer = layer.removesuffix("slstm_cell")
        if layer.endswith("norm"):
            converted[key] = 1 + tensor
        elif layer.endswith("ffn.proj_up"):
            block = layer.removesuffix("ffn.proj_up")
            converted |= zip((f"{block}mlp.w1.weight", f"{block}mlp.w3.weight"), tensor.chunk(2), strict=True)
        elif name == "_recurrent_kernel_":
            converted[f"{mixer}R"] = _recurrent(tensor)
        elif name == "_bias_":
            gates = (f"{mixer}{gate}_gate.bias" for gate in "ifzo")
            converted |= zip(gates, _biases(tensor, renamed[f"{layer}._recurrent_kernel_"]), strict=True)
        elif tensor.dim() == 3 and not layer.endswith("conv1d"):
            converted[key] = tensor.mT.contiguous()
        else:
            converted[key] = tensor
    return converted


def _recurrent(kernel: Tensor) -> Tensor:
    """(H, inputs, 4, outputs)."""
    heads, rows, columns = kernel.shape
    if rows < columns:
        return kernel.reshape(heads, rows, 4, rows)
    return kernel.reshape(heads, 4, columns, columns).permute(0, 3, 1, 2).contiguous()


def _biases(bias: Tensor, kernel: Tensor) -> tuple[Tensor, ...]:
    """Those of i, f, z and o, (H, channels) each."""
    heads, rows, columns = kernel.shape
    gates = bias.reshape(heads, 4, -1).transpose(0, 1) if rows < columns else bias.reshape(4, heads, -1)
    return gates.contiguous().unbind()

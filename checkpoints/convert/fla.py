"""Checkpoints of flash-linear-attention (fla), in the layout that transformers reads once ``import fla`` registers it.

Its linear attentions name their tensors alike; each has a ``Layout`` for what differs. Files from before February 2025
hold both halves of SwiGLU in one tensor, the gate first.

Facts: fla-org/flash-linear-attention at bc3b101, fla/models and fla/layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.rename import rename

_LAYER, _BLOCK = "model.layers.#.", "blocks.#."
_NAMES = [  # published, ours; before and after those of the norm, which differ
    ("model.embeddings.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    (_LAYER + "attn_norm.", _BLOCK + "norm."),
    (_LAYER + "mlp_norm.", _BLOCK + "mlp_norm."),
    (_LAYER + "mlp.gate_proj.", _BLOCK + "mlp.w1."),
    (_LAYER + "mlp.up_proj.", _BLOCK + "mlp.w3."),
    (_LAYER + "mlp.down_proj.", _BLOCK + "mlp.w2."),
    (_LAYER + "attn.o_proj.", _BLOCK + "mixer.out_proj."),
]
_MIXER = (_LAYER + "attn.", _BLOCK + "mixer.")
_FIELDS: dict[str, tuple[str, Any]] = {  # published -> ours, value where it is left out
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("dim", 2048),
    "num_hidden_layers": ("depth", 24),
    "norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", False),
    "initializer_range": ("initializer_range", 0.02),
}
_FIXED: dict[str, Any] = {"hidden_act": "swish", "attn": None, "attnres_block_size": None}
_ALL_HEADS = ("num_kv_heads", "num_v_heads")  # as many as num_heads, or None


@dataclass(frozen=True)
class Layout:
    """One of fla's models.

    Args:
        model_type: of its ``config.json``.
        family: the zoo's.
        architecture: name of its class.
        norm: names of the norm over a head's output, the one that is written first.
        fields: options of the mixer, published name -> (ours, value where it is left out).
        fixed: options that have one value here.
        ratio: of SwiGLU where a file names no width.
        widths: from published options to our fields of another meaning, and back.
    """

    model_type: str
    family: str
    architecture: str
    norm: tuple[str, ...]
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any]
    ratio: int = 4
    widths: tuple[Callable[[Mapping[str, Any]], dict[str, Any]], ...] = (lambda _: {}, lambda _: {})

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:
        """The one that ``config.json`` names."""
        return (self.model_type,)

    @property
    def names(self) -> list[tuple[str, str]]:
        """Pairs (published, ours)."""
        return [*_NAMES, *((_LAYER + f"attn.{norm}.", _BLOCK + "mixer.o_norm.") for norm in self.norm), _MIXER]

    def recognises(self, state_dict: Mapping[str, Tensor]) -> bool:
        """Whether the keys are those of a linear attention of fla."""
        bare = {key.removeprefix("model.") for key in state_dict}
        wanted = {"embeddings.weight", "layers.0.attn.q_proj.weight"}
        return wanted <= bare and any(f"layers.0.attn.{norm}.weight" in bare for norm in self.norm)

    def to_zoo(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published names -> the zoo's."""
        whole = {key if key.startswith(("model.", "lm_head.")) else f"model.{key}": t for key, t in state_dict.items()}
        renamed = rename(whole, self.names)
        for key in [key for key in renamed if key.endswith(".mlp.w1.weight")]:
            if (up := key.replace(".w1.", ".w3.")) not in renamed:
                renamed[key], renamed[up] = renamed[key].chunk(2)
        return renamed

    def to_transformers(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The zoo's names -> fla's; tensors unchanged."""
        return rename(state_dict, self.names, backwards=True)

    def config_from_transformers(self, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """fla's ``config.json`` -> family and fields of its configuration.

        Raises:
            ValueError: for an option this architecture does not have here.
        """
        for name, value in (_FIXED | dict(self.fixed)).items():
            if config.get(name, value) != value:
                raise ValueError(f"{name} must be {value!r}, got {config[name]!r}")
        known = (_FIELDS | dict(self.fields)).items()
        fields = {ours: config.get(theirs, default) for theirs, (ours, default) in known}
        for name in ("dim", "num_heads"):
            if not isinstance(fields[name], int) or fields[name] < 1:
                raise ValueError(f"hidden_size and num_heads must be positive integers, got {fields[name]!r}")
        for name in _ALL_HEADS:
            if config.get(name) not in (None, fields["num_heads"]):
                raise ValueError(f"{name} must be num_heads, {fields['num_heads']}, got {config[name]!r}")
        width = int(fields["dim"] * float(config.get("hidden_ratio") or self.ratio) * 2 / 3)
        fields["mlp_dim"] = config.get("intermediate_size") or -(-width // 256) * 256
        return self.family, fields | self.widths[0](dict(config) | fields)

    def config_to_transformers(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of our configuration -> fla's ``config.json``."""
        fields = {theirs: config[ours] for theirs, (ours, _) in (_FIELDS | dict(self.fields)).items()}
        return _FIXED | dict(self.fixed) | fields | self.widths[1](config) | {
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "intermediate_size": config["mlp_dim"],
            "fuse_norm": True,
        }  # fmt: skip

    def settled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Our fields, with the width of a head that None stands for."""
        fields = dict(config)
        if fields.get("head_dim", 1) is None:
            fields["head_dim"] = fields["dim"] // fields["num_heads"]
        return fields


def _head_widths(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, dim = config["num_heads"], config["dim"]
    keys, values = (int(dim * float(config.get(name, 1.0))) for name in ("expand_k", "expand_v"))
    return {"head_dim": keys // heads, "expand_v": values / keys}


def _expansions(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = config["num_heads"] * config["head_dim"] / config["dim"]
    return {"expand_k": keys, "expand_v": keys * config["expand_v"]}


_CONVOLVED = {
    "num_heads": ("num_heads", 16),
    "conv_size": ("d_conv", 4),
    "allow_neg_eigval": ("negative_eigenvalues", False),
}
DELTA_NET = Layout(
    "delta_net", "deltanet", "DeltaNetForCausalLM", ("o_norm",), _CONVOLVED,
    {"use_gate": False, "use_beta": True, "use_short_conv": True, "use_output_norm": True, "qk_norm": "l2",
     "qk_activation": "silu"},
    widths=(_head_widths, _expansions),
)  # fmt: skip
GATED_DELTA_NET = Layout(
    "gated_deltanet", "gated_deltanet", "GatedDeltaNetForCausalLM", ("o_norm",),
    _CONVOLVED | {"num_heads": ("num_heads", 6), "head_dim": ("head_dim", 256), "expand_v": ("expand_v", 2.0),
                  "num_hidden_layers": ("depth", 21)},
    {"use_gate": True, "use_short_conv": True},
)  # fmt: skip
_PLAIN = {"feature_map": None, "use_short_conv": False, "use_output_gate": True, "elementwise_affine": True}
_GATED_NORMS = ("g_norm_swish_gate", "g_norm")  # the second where a file says "fuse_norm": false
GLA = Layout(
    "gla", "gla", "GLAForCausalLM", _GATED_NORMS,
    {"expand_k": ("expand_k", 0.5), "expand_v": ("expand_v", 1.0), "num_heads": ("num_heads", 4)},
    _PLAIN | {"clamp_min": None, "use_gk": True, "use_gv": False},
)  # fmt: skip
RETNET = Layout(
    "retnet", "retnet", "RetNetForCausalLM", _GATED_NORMS,
    {"expand_k": ("expand_k", 1.0), "expand_v": ("expand_v", 2.0), "num_heads": ("num_heads", 8)},
    _PLAIN, ratio=2,
)  # fmt: skip
LAYOUTS = (DELTA_NET, GATED_DELTA_NET, GLA, RETNET)

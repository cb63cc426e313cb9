"""DeFTAN-II checkpoints of the authors (donghoney0416/DeFTAN-II)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.checkpoints.convert.rename import replace

PAIRS = (
    ("up_conv.2.", "encode_groups."), ("up_conv.", "encode."), ("down_conv.0.", "decode."),
    ("down_conv.1.", "decode_groups."), (".F_", ".frequency."), (".T_", ".time."), ("norm.gamma", "norm.weight"),
    ("norm.beta", "norm.bias"), (".inv.", ".subgroups."), (".linear.", ".spread."), (".att.norm", ".attention_norm"),
    (".ffw.norm", ".mlp_norm"), (".att.fn.cv_qk.0", ".attention.emphasis"), (".att.fn.to_q", ".attention.query"),
    (".att.fn.to_k", ".attention.key"), (".att.fn.to_v", ".attention.value"), (".att.fn.to_out.0", ".attention.out"),
    (".ffw.fn.PW1.0", ".mlp.plain"), (".ffw.fn.PW2.0", ".mlp.mixed"), (".ffw.fn.DW_Conv", ".mlp.conv"),
    (".ffw.fn.PW3.0", ".mlp.out"),
)  # fmt: skip


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' network."""
    return {"up_conv.0.weight", "blocks.0.F_norm.gamma"} <= set(state_dict)


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names; norms over channels, which are (1, C, 1, 1) there, as vectors."""
    flat = {k: t.flatten() if k.endswith(("norm.gamma", "norm.beta")) else t for k, t in state_dict.items()}
    return replace(flat, PAIRS)

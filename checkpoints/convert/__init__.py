"""Converters between published checkpoints and the zoo: one file a family, pure functions over dicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert import (
    bamba,
    based,
    deepseek,
    deftan2,
    dense,
    efficienttam,
    efficientvit,
    elm,
    falcon_h1,
    fla,
    gpt_oss,
    granite_hybrid,
    hybrid,
    jamba,
    kimi_linear,
    lfm2,
    llava,
    m2_encoder,
    m3vit,
    mamba,
    mambavision,
    mcunet,
    minimax,
    mixtral,
    nemotron_h,
    pcdarts,
    qwen3_next,
    recurrent_gemma,
    rwkv7,
    simplenet,
    smallthinker,
    timm_models,
    vmamba,
    vovnet,
    wetok,
    xlstm,
    xlstm1,
    zamba2,
)
from zoo.checkpoints.convert.rename import unwrapped

__all__ = [
    "CONVERTERS",
    "LAYOUTS",
    "foreign_config",
    "implied",
    "published_config",
    "published_names",
    "settled",
    "to_zoo",
]

CONVERTERS = (
    bamba, kimi_linear, deepseek, llava, dense, *fla.LAYOUTS, falcon_h1, gpt_oss, granite_hybrid, jamba, lfm2, mamba,
    mambavision, minimax, mixtral, nemotron_h, qwen3_next, recurrent_gemma, rwkv7, smallthinker, xlstm, zamba2,
)  # fmt: skip
_AUTHORS = (
    based,
    deftan2,
    efficienttam,
    efficientvit,
    elm,
    m2_encoder,
    m3vit,
    mcunet,
    pcdarts,
    simplenet,
    vmamba,
    vovnet,
    wetok,
    xlstm1,
)  # of weights alone
LAYOUTS = ("zoo", "transformers", "timm", "gguf")
_TRANSFORMERS: dict[str, Any] = {  # family -> converter
    "mamba": mamba, "mamba2": mamba, "falcon_h1": falcon_h1, "deepseek": deepseek, "moe": mixtral,
    "minimax": minimax, "gpt_oss": gpt_oss, "transformer": dense, "lfm2": lfm2, "qwen3_next": qwen3_next,
    "recurrent_gemma": recurrent_gemma, "rwkv7": rwkv7, **{layout.family: layout for layout in fla.LAYOUTS},
    "kimi_linear": kimi_linear,
    "jamba": jamba, "bamba": bamba, "granite_hybrid": granite_hybrid, "nemotron_h": nemotron_h, "zamba2": zamba2,
    "smallthinker": smallthinker, "xlstm": xlstm, "llava": llava,
}  # fmt: skip
_IN_FILES = {  # where files differ from memory
    "deepseek": deepseek.to_transformers, "moe": mixtral.to_transformers, "qwen3_next": qwen3_next.to_transformers,
    "jamba": jamba.to_transformers, "granite_hybrid": granite_hybrid.to_transformers,
    "nemotron_h": nemotron_h.to_transformers, "kimi_linear": kimi_linear.to_transformers,
    "minimax": minimax.to_transformers,
}  # fmt: skip
_SETTLED = (
    {"moe": mixtral.settled, "zamba2": zamba2.settled, "kimi_linear": hybrid.written_out, "llava": llava.settled}
    | dict.fromkeys(("gpt_oss", "minimax", "smallthinker", "transformer"), dense.settled)
    | dict.fromkeys(("bamba", "granite_hybrid", "jamba", "nemotron_h"), hybrid.settled)
    | {layout.family: layout.settled for layout in fla.LAYOUTS}
)
_TIMM = {"vit": dict, "efficientvit": efficientvit.to_timm, "shvit": efficientvit.to_timm, "vovnet": vovnet.to_timm}


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under the zoo's names; one that no converter recognises is returned as it is.

    Names that wrappers add ("module.", "_orig_mod.", and "model." where no converter knows it) are taken off.
    """
    converter, tensors = _recognised(state_dict)
    return tensors if converter is None else converter.to_zoo(tensors)


def implied(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of the configuration that a published layout settles, where names and shapes of its tensors fit others."""
    converter, tensors = _recognised(state_dict)
    return converter.implied(tensors) if hasattr(converter, "implied") else {}


def _recognised(state_dict: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The converter that knows the names, None where none does, and the tensors without wrappers' prefixes."""
    forms = unwrapped(state_dict)
    for tensors in forms:
        for converter in (*CONVERTERS, *_AUTHORS):
            if converter.recognises(tensors):
                return converter, tensors
    return None, forms[0]


def foreign_config(config: Mapping[str, Any], own: Collection[str] = ()) -> tuple[str, dict[str, Any]]:
    """A ``config.json`` -> name of a model or family of the zoo, and the configuration fields that differ from it.

    Known are the zoo's own, transformers' ("model_type"), mamba-ssm's ("d_model"), timm's ("architecture") and those of
    the authors of BASED ("alt_mixer_layers", or "rotary_emb_fraction").

    Args:
        config: the content of the file.
        own: names of the zoo's models, by which timm knows them too.

    Raises:
        ValueError: for any other, or an option that has no counterpart here.
    """
    if "architecture" in config and "config" in config:
        return str(config["architecture"]), config["config"]
    for converter in CONVERTERS:
        if config.get("model_type") in converter.MODEL_TYPES:
            return converter.config_from_transformers(config)
    for described, converted in (
        ("d_model", mamba.config_from_mamba_ssm),
        ("alt_mixer_layers", based.config_from_authors),
        ("rotary_emb_fraction", based.config_from_authors),
        ("architecture", partial(timm_models.config_from_timm, own=own)),
    ):
        if described in config:
            return converted(config)
    known = ", ".join(name for converter in CONVERTERS for name in converter.MODEL_TYPES)
    raise ValueError(
        f"config.json has model_type {config.get('model_type')!r}, which has no converter here; folders written by "
        f"zoo.save_model, transformers' {known}, timm's ViT, EfficientViT-M, SHViT and VoVNet, and mamba-ssm's can be "
        "loaded"
    )


def settled(family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The zoo's configuration with the values that None stands for where a layout wants them."""
    return _SETTLED.get(family, dict)(config)


def published_config(layout: str, family: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The zoo's configuration -> ``config.json`` in the layout "transformers" or "timm".

    Raises:
        ValueError: for a family the layout does not have.
    """
    if layout == "timm":
        return timm_models.config_to_timm(family, name, config)
    if family not in _TRANSFORMERS:
        raise ValueError(f"transformers has no counterpart of {family!r}; it has {', '.join(_TRANSFORMERS)}")
    return _TRANSFORMERS[family].config_to_transformers(config)


def published_names(layout: str, family: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The zoo's state dict -> the tensors that a file of the layout holds."""
    if layout == "timm":
        return _TIMM[family](state_dict)
    if family in _IN_FILES:
        return _IN_FILES[family](state_dict, stacked=False)
    return _TRANSFORMERS[family].to_transformers(state_dict)

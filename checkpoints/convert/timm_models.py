"""timm's ``config.json`` for the vision families of the zoo; the tensors are the families' own converters' business.

timm writes the name of an architecture, the arguments that were given beside it (``model_args``), and how images are
prepared (``pretrained_cfg``; in older files at the top).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

MODEL_ARGUMENTS = {  # family -> timm's argument -> ours
    "vit": {
        "patch_size": "patch_size", "embed_dim": "dim", "depth": "depth", "num_heads": "num_heads",
        "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "proj_drop_rate": "proj_drop_rate", "img_size": "img_size",
        "drop_path_rate": "drop_path_rate", "fc_norm": "fc_norm", "dynamic_img_size": "dynamic_img_size",
    },
    "efficientvit": {
        "embed_dim": "dims", "depth": "depths", "num_heads": "num_heads", "kernels": "kernels", "key_dim": "qk_dim",
        "window_size": "window", "img_size": "img_size",
    },
    "shvit": {"embed_dim": "dims", "depth": "depths", "partial_dim": "partial_dims", "qk_dim": "qk_dim"},
    "vovnet": {
        "stage_out_chs": "dims", "stage_conv_chs": "mid_dims", "block_per_stage": "depths",
        "layer_per_block": "num_layers", "residual": "residual", "depthwise": "separable", "attn": "squeeze",
        "drop_path_rate": "drop_path_rate",
    },
}  # fmt: skip
_EVERY = ("in_chans", "num_classes", "drop_rate")
_NAMES = {  # family -> architectures
    "vit": r"(?:vit|deit)_(?P<size>tiny|small|base|large|huge)_patch(?P<patch>\d+)_\d+",
    "efficientvit": r"efficientvit_m[0-5]",
    "shvit": r"shvit_s[1-4]",
    "vovnet": r"vovnet(39|57)a|ese_vovnet(19b_dw|19b_slim|19b_slim_dw|39b|57b|99b)",
}
_OTHERS = {  # what an architecture of another name is called, with all its arguments
    "vit": "vit_base_patch16_224", "efficientvit": "efficientvit_m0", "shvit": "shvit_s1", "vovnet": "ese_vovnet39b",
}  # fmt: skip
_HEADS = {"vit": "head", "efficientvit": "head.linear", "shvit": "head.l", "vovnet": "head.fc"}
_STEMS = {
    "vit": "patch_embed.proj", "efficientvit": "patch_embed.conv1.conv", "shvit": "patch_embed.0.c",
    "vovnet": "stem.0.conv",
}  # fmt: skip
_VITS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16),
         "huge": (1280, 32, 16)}  # fmt: skip
_PREPARATION = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
_SQUEEZE = {"": "never", None: "never", "ese": "last"}


def config_from_timm(config: Mapping[str, Any], own: Collection[str] = ()) -> tuple[str, dict[str, Any]]:
    """timm's ``config.json`` -> name of the zoo's model with the same sizes, and the fields that differ.

    Args:
        config: the content of the file.
        own: names of the zoo's models, which timm may have written in the zoo's terms; timm's own names are timm's.

    Raises:
        ValueError: for an architecture or an argument without a counterpart here.
    """
    name = str(config["architecture"]).split(".")[0]
    family = next((family for family, names in _NAMES.items() if re.fullmatch(names, name)), None)
    if family is None and name not in own:
        raise ValueError(
            f"timm's architecture {name!r} has no counterpart here; known are vit_* and deit_* in plain sizes, "
            "efficientvit_m0 to m5, shvit_s1 to s4, vovnet39a, vovnet57a and ese_vovnet*"
        )
    prepared = config.get("pretrained_cfg") or config
    given = {key: value for key, value in (config.get("model_args") or {}).items() if value is not None}
    pooling = given.pop("global_pool", config.get("global_pool"))
    channels, *sides = prepared.get("input_size", (3, 224, 224))
    fields = {"img_size": _side(sides), "in_chans": channels}
    fields |= {key: prepared[key] for key in _PREPARATION if key in prepared}
    fields["num_classes"] = config.get("num_classes", prepared.get("num_classes", 1000))
    names = config.get("label_names") or prepared.get("label_names")
    if isinstance(names, (list, tuple)):
        fields["label_names"] = names
    if family is None:
        return name, fields | given | ({} if pooling is None else {"global_pool": pooling})
    if family == "vit":
        found = re.fullmatch(_NAMES["vit"], name)
        assert found is not None
        fields |= dict(zip(("dim", "depth", "num_heads"), _VITS[found["size"]], strict=True))
        fields["patch_size"] = int(found["patch"])
        name = name if found["size"] in ("tiny", "small", "base") and name.startswith("vit") else _OTHERS["vit"]
        name = name if name.endswith("_patch16_224") else _OTHERS["vit"]
    if pooling is not None:
        fields["global_pool"] = pooling
    return name, fields | _arguments(family, given)


def config_to_timm(family: str, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The zoo's configuration of a vision model -> timm's ``config.json``, with every argument spelt out.

    Raises:
        ValueError: for a family timm does not have.
    """
    if family not in MODEL_ARGUMENTS:
        raise ValueError(f"timm has no counterpart of the family {family!r}; it has {', '.join(MODEL_ARGUMENTS)}")
    stages = len(config.get("dims", ()))
    arguments = {theirs: config[ours] for theirs, ours in MODEL_ARGUMENTS[family].items()}
    arguments |= {key: config[key] for key in _EVERY}
    if family == "shvit":
        arguments["types"] = ["s" if width else "i" for width in config["partial_dims"]]
        arguments["qk_dim"] = [config["qk_dim"]] * stages
    if family == "efficientvit":
        for key in ("key_dim", "window_size"):
            arguments[key] = [arguments[key]] * stages
        arguments["down_ops"] = [["", 1], *[["subsample", 2]] * (stages - 1)]
    if family == "vovnet":
        arguments["stem_chs"] = [config["dims"][0], config["dims"][0], config["stem_dim"]]
        for key in ("stage_out_chs", "stage_conv_chs", "block_per_stage"):
            arguments[key] = arguments[key][1:]
        arguments["attn"] = "ese" if config["squeeze"] == "last" else ""
    pooling, usual = config["global_pool"], "token" if family == "vit" else "avg"
    size = config["img_size"]
    return {
        "architecture": name if re.fullmatch(_NAMES[family], name) else _OTHERS[family],
        "num_classes": config["num_classes"],
        "num_features": config["dims"][-1] if stages else config["dim"],
        "global_pool": pooling,
        "model_args": arguments | ({} if pooling == usual else {"global_pool": pooling}),
        "pretrained_cfg": {
            "input_size": [config["in_chans"], *([size, size] if isinstance(size, int) else size)],
            "fixed_input_size": family in ("vit", "efficientvit"),
            "num_classes": config["num_classes"],
            "first_conv": _STEMS[family],
            "classifier": _HEADS[family],
            **{key: config[key] for key in _PREPARATION},
        },
    }


def _arguments(family: str, given: dict[str, Any]) -> dict[str, Any]:
    names = MODEL_ARGUMENTS[family] | {key: key for key in _EVERY}
    fields: dict[str, Any] = {}
    types = given.pop("types", None) if family == "shvit" else None
    steps = given.pop("down_ops", []) if family == "efficientvit" else []
    if [list(step) for step in steps] != [["subsample", 2] if index else ["", 1] for index in range(len(steps))]:
        raise ValueError(f"down_ops must halve the map between stages, got {steps!r}")
    if family == "vovnet" and "stem_chs" in given:
        first, second, third = given.pop("stem_chs")
        if first != second:
            raise ValueError(f"stem_chs must start with two equal widths, got {[first, second, third]}")
        fields |= {"first": first, "stem_dim": third}
    for key, value in given.items():
        if key not in names:
            raise ValueError(f"timm's argument {key}={value!r} has no counterpart in the zoo's {family}")
        fields[names[key]] = value
    for key in ("qk_dim", "window"):
        if isinstance(fields.get(key), (list, tuple)):
            if len(set(fields[key])) != 1:
                raise ValueError(f"timm's {key} must be the same in all stages, got {fields[key]!r}")
            fields[key] = fields[key][0]
    if isinstance(fields.get("img_size"), (list, tuple)):
        fields["img_size"] = _side(fields["img_size"])
    if "partial_dims" in fields:
        kinds = types or ["i", *["s"] * (len(fields["partial_dims"]) - 1)]
        fields["partial_dims"] = [
            w if kind == "s" else 0 for w, kind in zip(fields["partial_dims"], kinds, strict=True)
        ]
    if "squeeze" in fields:
        if fields["squeeze"] not in _SQUEEZE:
            raise ValueError(f"timm's attn must be 'ese' or '' for a VoVNet here, got {fields['squeeze']!r}")
        fields["squeeze"] = _SQUEEZE[fields["squeeze"]]
    first = fields.pop("first", 64)  # of all of timm's VoVNets
    for key, start in (("dims", first), ("mid_dims", 0), ("depths", 0)):
        if family == "vovnet" and key in fields:
            fields[key] = [start, *fields[key]]
    return fields


def _side(sides: Any) -> Any:
    return sides[0] if len(set(sides)) == 1 else list(sides)

"""The zoo's vision models under timm's ``create_model``."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.factory import create_model
from zoo.registry import entries

__all__: list[str] = []  # timm's registry appends the names it is given
default_cfgs: dict[str, dict[str, Any]] = {}  # and looks for how images are prepared here


def register_with_timm() -> list[str]:
    """Make the zoo's image classifiers available to ``timm.create_model``, ``timm.list_models`` and timm's scripts.

    Names that timm has already stay timm's own. Further calls register only what is new since. Arguments of
    ``timm.create_model`` reach ``zoo.create_model``: num_classes, in_chans, img_size, drop_rate, drop_path_rate,
    features_only, out_indices and every other field of the configuration. ``checkpoint_path`` is timm's own loading,
    by the zoo's tensor names.

    Returns:
        The names that this call registered.
    """
    from timm.models import is_model, register_model

    registered = []
    for name, entry in entries().items():
        if entry.task == "image-classification" and not is_model(name):
            default_cfgs[name] = _default_cfg(entry.configure())
            register_model(_entrypoint(name))
            registered.append(name)
    return registered


def _entrypoint(name: str) -> Any:
    """What timm calls to build a model: named after it, and from this module."""

    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        known = {key: value for key, value in options.items() if key not in _OF_TIMM}
        return create_model(name, pretrained, **known)

    build.__name__ = build.__qualname__ = name
    return build


_OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # where timm would look for weights


def _default_cfg(config: Any) -> dict[str, Any]:
    return {
        "input_size": (config.in_chans, *config.image_shape),
        "num_classes": config.num_classes,
        "mean": config.mean,
        "std": config.std,
        "interpolation": config.interpolation,
        "crop_pct": config.crop_pct,
    }

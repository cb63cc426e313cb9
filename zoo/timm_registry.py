"""The zoo's vision models under timm's ``create_model``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints import bundled, fit_state_dict
from zoo.checkpoints.convert import implied, to_zoo
from zoo.checkpoints.index import INDEX, UNKNOWN
from zoo.config import agreed, override
from zoo.factory import create_model
from zoo.layers import SS2D, BiMamba, CascadedGroupAttention, MambaVisionMixer, RMSNorm
from zoo.layers.batch_norm import BatchNorm1d, BatchNorm2d
from zoo.layers.moe import TaskMoE
from zoo.layers.sequence_block import SequenceBlock
from zoo.loading import tied
from zoo.registry import ModelEntry, entries
from zoo.vision.base import VisionModel
from zoo.vision.surface import described

__all__: list[str] = []  # timm's registry appends the names it is given
default_cfgs: dict[str, Any] = {}  # and looks for weights and preparation here
SOURCES = ("file", "url", "hf_hub_id", "state_dict")


def register_with_timm() -> list[str]:
    """Make the zoo's image classifiers available to ``timm.create_model``, ``timm.list_models`` and timm's scripts.

    Names that timm has already stay timm's own. Further calls register only what is new since. Arguments of
    ``timm.create_model`` mean what they mean for timm's models: tags of weights, pretrained_cfg,
    pretrained_cfg_overlay, checkpoint_path, cache_dir, features_only, out_indices and feature_cls (by default timm's
    "getter", all stages or blocks); num_classes, in_chans, img_size, drop_rate, drop_path_rate and every other field of
    the configuration reach the model. A source of weights in an overlay takes the place of all registered ones, and its
    files may be in any layout that the zoo reads; a checkpoint_path, which timm itself loads, has the zoo's names.
    TorchScript is refused; torch.fx keeps scans and routed layers whole.

    Returns:
        The names that this call registered.
    """
    from timm.layers import register_notrace_module
    from timm.models import generate_default_cfgs, is_model, register_model

    for kept in (
        SS2D, BatchNorm1d, BatchNorm2d, BiMamba, CascadedGroupAttention, MambaVisionMixer, RMSNorm, SequenceBlock,
        TaskMoE,
    ):  # fmt: skip
        register_notrace_module(kept)
    registered = []
    for name, entry in entries().items():
        ours = isinstance(entry.model_class, type) and issubclass(entry.model_class, VisionModel)
        if entry.task == "image-classification" and ours and not is_model(name):
            default_cfgs.update(generate_default_cfgs({**_published(entry)}))
            register_model(_entrypoint(entry))
            registered.append(name)
    return registered


def _published(entry: ModelEntry) -> dict[str, dict[str, Any]]:
    """Where the weights of each tag are, and how images are prepared for them, the first tag the default."""
    found = {}
    for tag in entry.tags or ("",):
        weights = INDEX.get(entry.name, {}).get(tag)
        source: dict[str, Any] = {"paper_ids": f"arXiv:{entry.paper.arxiv}", "paper_name": entry.paper.title}
        if weights is not None:
            repo = f"{weights.repo}@{weights.revision}" if weights.revision else weights.repo
            source |= {"hf_hub_id": repo, "hf_hub_filename": weights.file, "url": weights.url}
            source |= {"license": None if weights.licence == UNKNOWN else weights.licence}
        elif tag == "bundled":
            source["file"] = str(bundled.FOLDER / bundled.index()[entry.name]["file"])
        found[f"{entry.name}.{tag}" if tag else entry.name] = source | described(entry.model_class, _known(entry, tag))
    return found


def _known(entry: ModelEntry, tag: str | None, **fields: Any) -> Any:
    """The configuration that the weights of a tag were made with."""
    weights = INDEX.get(entry.name, {}).get(tag or "")
    return override(entry.configure(), entry.name, (dict(weights.fields) if weights else {}) | fields)


def _entrypoint(entry: ModelEntry) -> Any:
    """What timm calls to build a model: named after it, and from this module."""

    def build(
        pretrained: bool = False, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, **options: Any
    ) -> nn.Module:
        from timm.models import build_model_with_cfg, resolve_pretrained_cfg

        overlay: dict[str, Any] = dict(pretrained_cfg_overlay or {})
        if any(overlay.get(source) for source in SOURCES):
            overlay = {**dict.fromkeys(SOURCES), "hf_hub_filename": None, **overlay}
        cfg = resolve_pretrained_cfg(entry.name, pretrained_cfg, overlay)
        weights = INDEX.get(entry.name, {}).get(cfg.tag or "")
        fields: dict[str, Any] = dict(weights.fields) if weights else {}
        known = _known(entry, cfg.tag, img_size=tuple(cfg.input_size[-2:]))
        return build_model_with_cfg(
            partial(create_model, entry.name),
            entry.name,
            pretrained,
            pretrained_cfg=cfg.to_dict(),
            pretrained_filter_fn=partial(_fitted, known=known),
            feature_cfg={"feature_cls": "getter", "out_indices": None},
            **fields | options,
        )

    build.__name__ = build.__qualname__ = entry.name
    return build


def _fitted(state_dict: Mapping[str, Tensor], model: Any, known: Any) -> dict[str, Tensor]:
    """A file's tensors under the zoo's names and for the size of the model's images; timm adapts its ends.

    Raises:
        ValueError: listing what does not fit besides the classifier and the first convolution.
    """
    wrapped = (state_dict.get(name) for name in ("state_dict", "model"))  # timm leaves them around what it downloads
    published = bundled.unpack(next((part for part in wrapped if isinstance(part, Mapping)), state_dict))
    agreed(model.config, dataclasses.asdict(model.config), implied(published), "the file")
    tensors = model.adapt_tensors(to_zoo(published), known)
    ends = (f"{model.first_conv}.", f"{model.classifier.partition('.')[0]}.")
    inner, expected = (
        {key: tensor for key, tensor in part.items() if not key.startswith(ends)}
        for part in (tensors, model.state_dict())
    )
    fit_state_dict(inner, expected, tied(model), "the file")
    return tensors

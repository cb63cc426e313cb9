"""From a name to a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from zoo.adapt.files import load_adapter
from zoo.adapt.method import Adapter, adapt, as_adapter
from zoo.changes import Change, apply, as_change, rebuilding
from zoo.checkpoints import bundled, fit_state_dict, read_config, read_state_dict
from zoo.checkpoints.convert import implied, to_zoo
from zoo.checkpoints.index import INDEX
from zoo.checkpoints.io import CONFIG
from zoo.config import agreed, describe_fields, override
from zoo.fetching import entry_and_tag, fetch_tag_tokenizer, fetched, prefetch
from zoo.layers.quant import Format, count_parameters
from zoo.loading import build_around, cast, common_dtype, tied, without_memory
from zoo.quantize import quantize as compress
from zoo.quantize.files import KEY, formats
from zoo.recognition import describe_model, known_beside
from zoo.registry import ModelEntry, Paper, WeightSet, lookup

if TYPE_CHECKING:
    from zoo.language import LanguageModel
    from zoo.vision import FeatureNet, VisionModel


@overload
def create_model(
    name: str, pretrained: bool = False, *, features_only: Literal[True], **options: Any
) -> FeatureNet: ...


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    deploy: bool = False,
    features_only: Literal[False] = False,
    changes: Sequence[Change | Mapping[str, Any]] = (),
    quantize: Mapping[str, Any] | None = None,
    adapter: str | Path | Adapter | Mapping[str, Any] | None = None,
    **config_overrides: Any,
) -> LanguageModel | VisionModel: ...


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    deploy: bool = False,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    changes: Sequence[Change | Mapping[str, Any]] = (),
    quantize: Mapping[str, Any] | None = None,
    adapter: str | Path | Adapter | Mapping[str, Any] | None = None,
    **config_overrides: Any,
) -> nn.Module:
    """Build a registered model, or one from a folder, in training mode as every new nn.Module.

    Args:
        name: "family_size", "family_size.tag" for a set of weights, "local-dir:FOLDER" for a folder, or
            "hf-hub:owner/repo[@revision]" for a repository on the Hub; both as ``save_model``, transformers, timm or
            mamba-ssm write them.
        pretrained: load the published weights, downloaded once, or the bundled ones. The config.json beside them
            decides over the name's defaults. With another num_classes the classifier is a fresh one.
        checkpoint_path: load these weights: a safetensors or PyTorch file, or a folder, whose config.json decides as
            above. Of a Lightning checkpoint of this library the averaged model, where there is one. With another
            num_classes the classifier is a fresh one.
        device: where to build it; "meta" builds without memory, and so without weights.
        dtype: floating dtype of the parameters; those a layer names in ``float32_parameters`` (A_log, D, dt_bias) stay
            float32 under bfloat16 and float16. "auto" takes that of the weights, as most of their numbers have it.
        deploy: vision models only: in the form for inference, ``model.fuse()``, in eval mode and channels_last. On the
            CPU its convolutions keep a second copy of their weights, in the layout of oneDNN (``InferenceConv2d``).
        features_only: vision models only: the list of feature maps instead of logits, by ``zoo.vision.FeatureNet``.
        out_indices: which of them, by index (negative from the end), or the last so many for an int; all for None.
        changes: made to the model in this order once its weights are loaded, see ``zoo.changes``: what they add starts
            as they say. A recipe writes them as a ``config.json`` does, {"kind": ..., fields}.
        quantize: then its weights are compressed by ``zoo.quantize`` with these arguments, {"bits": 3}; what sees
            inputs, a calibrated method, is called by itself.
        adapter: put on the model last, see ``zoo.adapt``: a folder of ``zoo.save_adapter``, which was trained on these
            weights, or a fresh one as an ``Adapter`` or {"kind": ..., fields}.
        config_overrides: fields of the model's configuration; they win over what a tag or a file says. Weights for
            other channels (in_chans) are adapted, and tables of positions for images of another size resized, as in
            timm.

    Raises:
        ValueError: for an unknown name or tag, sizes that do not fit together, or a checkpoint that does not fit (the
            error lists missing, unexpected and mismatched keys; nothing is loaded).
        TypeError: for an unknown field, with the nearest one and all that exist.
    """
    if out_indices is not None and not features_only:
        raise ValueError(f"out_indices go with features_only=True, got out_indices {out_indices}")
    wanted = _resolve(name, pretrained, checkpoint_path, config_overrides)
    if features_only:  # whose classifier goes
        wanted = dataclasses.replace(wanted, changed=wanted.changed | {"num_classes"})
    place = torch.device(device or torch.get_default_device())
    model = _build(wanted, place, dtype)
    with place:
        for change in changes:
            apply(model, change if isinstance(change, Change) else as_change(change))
        if quantize is not None:
            compress(model, **quantize)
        if isinstance(adapter, (str, Path)):
            load_adapter(model, adapter)
        elif adapter is not None:
            adapt(model, adapter if isinstance(adapter, Adapter) else as_adapter(adapter))
    return _vision_form(model, deploy, features_only, out_indices) if deploy or features_only else model


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """A registered model, its configuration, and the weights it starts from.

    weights: as the file has them. source: of them, for errors. known: the configuration they were made with, where
    that is known. changed: the fields in which the caller wants the model to differ from them. folder: of a model, or
    of its tokenizer. content: of the config.json beside them.
    """

    entry: ModelEntry
    config: Any
    weights: Mapping[str, Tensor] | None = None
    source: str = ""
    known: Any = None
    changed: frozenset[str] = frozenset()
    folder: Path | None = None
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def formats(self) -> dict[str, Format]:
        return formats(self.content)

    @property
    def build(self) -> Callable[[Any], nn.Module]:
        """From a configuration to a model with what was done to it, its compressed weights as empty records."""
        return rebuilding(self.entry.model_class, self.content)

    @property
    def tensors(self) -> dict[str, Tensor] | None:
        """The weights under the model's names."""
        return self.weights if self.weights is None or self.formats else to_zoo(self.weights)  # type: ignore[return-value]


def _resolve(name: str, pretrained: bool, checkpoint_path: str | Path | None, overrides: dict[str, Any]) -> _Wanted:
    """What ``create_model`` is asked for.

    Of a configuration, the name's defaults come first, then what lies beside the weights, then the fields of the tag,
    then the caller's.
    """
    kind, _, place = name.partition(":")
    content: Mapping[str, Any] = {}
    if kind in ("hf-hub", "local-dir"):
        if pretrained or checkpoint_path is not None:
            raise ValueError(f"{kind}: already names the weights; leave out pretrained and checkpoint_path")
        folder = Path(place) if kind == "local-dir" else prefetch(name)
        content, weights, source = read_config(folder), read_state_dict(folder), str(folder)
        entry, known = describe_model(content, weights, source)
    else:
        entry, tag = entry_and_tag(name, pretrained)
        known, weights, source, folder = entry.configure(), None, f"{entry.name}.{tag}", None
        if pretrained and checkpoint_path is not None:
            raise ValueError("give either pretrained=True or checkpoint_path, not both")
        if pretrained and tag == "bundled":
            weights = bundled.read(entry.name)
        elif pretrained:
            weights, known = fetched(entry, tag)
            folder = fetch_tag_tokenizer(entry, tag)
        elif checkpoint_path is not None:
            weights, source = read_state_dict(checkpoint_path), str(checkpoint_path)
            content = read_config(checkpoint_path) if (Path(checkpoint_path) / CONFIG).exists() else {}
            known = known_beside(Path(checkpoint_path), weights, entry) or known
        if tag in INDEX.get(entry.name, {}):
            known = override(known, entry.name, dict(INDEX[entry.name][tag].fields))
    config = override(known, entry.name, overrides)
    if weights is not None and KEY not in content:
        config = agreed(config, overrides, implied(weights), source)
    return _Wanted(entry, config, weights, source, known, frozenset(overrides), folder, content)


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """Load a state dict of the zoo, of the authors or of transformers into a model, all of it or nothing.

    Raises:
        ValueError: listing missing, unexpected and mismatched keys; or for a layout made with other options.
    """
    if config := getattr(model, "config", None):
        agreed(config, dataclasses.asdict(config), implied(state_dict), source)
    tensors = to_zoo(state_dict)
    if hasattr(model, "adapt_tensors"):
        tensors = model.adapt_tensors(tensors)  # type: ignore[operator]
    model.load_state_dict(fit_state_dict(tensors, model.state_dict(), tied(model), source))


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What is known of a registered model.

    Attributes:
        config: its default configuration, field -> value.
        options: what the fields mean.
        weights: tag -> what is known of the weights.
        bits_per_weight: what a saved model's weights take, all of them; None of a name.
    """

    name: str
    task: str
    family: str
    paper: Paper
    config: dict[str, Any]
    num_parameters: int
    tags: tuple[str, ...]
    options: dict[str, str]
    weights: dict[str, WeightSet]
    bits_per_weight: float | None = None


def model_info(name: str) -> ModelInfo:
    """Task, family, paper, configuration, parameter count (tied tensors once) and weight tags of a model.

    Args:
        name: of a registered model, or "local-dir:FOLDER" for a saved one, whose own configuration it is then.

    Raises:
        ValueError: for an unknown name, or a folder that holds no model of the zoo.
        FileNotFoundError: for a folder without a config.json.
    """
    if name.startswith("local-dir:"):
        wanted = _resolve(name, False, None, {})
        model = without_memory(wanted.build, wanted.config, wanted.weights or {}, wanted.source)
    else:
        wanted = _Wanted(lookup(name), lookup(name).configure())
        with torch.device("meta"):
            model = wanted.entry.model_class(wanted.config)
    entry, count = wanted.entry, count_parameters(model)
    described = dataclasses.asdict(wanted.config), count, entry.tags, describe_fields(type(wanted.config))
    stored = sum(tensor.nbytes for tensor in (wanted.weights or {}).values())
    bits = 8 * stored / count if stored else None
    return ModelInfo(entry.name, entry.task, entry.family, entry.paper, *described, entry.weights, bits)


def _build(wanted: _Wanted, device: torch.device, dtype: torch.dtype | Literal["auto"] | None) -> Any:
    build, config, tensors = wanted.build, wanted.config, wanted.tensors
    if wanted.formats and "num_classes" in wanted.changed and hasattr(wanted.entry.model_class, "reset_classifier"):
        config = dataclasses.replace(config, num_classes=wanted.known.num_classes)  # whose classifier may be a record
    if dtype == "auto":
        dtype = common_dtype({name: t for name, t in (tensors or {}).items() if not _in_record(name, wanted.formats)})
    model: Any
    if tensors is not None and device.type != "meta":  # which has no memory to load into
        model = build_around(
            tensors, build, config, wanted.source,
            device=device, dtype=dtype, known=wanted.known,
            changed=wanted.changed - {"num_classes"} if wanted.formats else wanted.changed,
        )  # fmt: skip
    else:
        with device:
            model = build(config)
        if dtype is not None:
            cast(model, dtype)
    if config != wanted.config:
        model.reset_classifier(wanted.config.num_classes)
    model.config_name, model.source_folder = wanted.entry.name, wanted.folder
    if wanted.formats:
        model.quantization = wanted.content[KEY].get("method", {})
    return model


def _in_record(name: str, held: Mapping[str, Format]) -> bool:
    return name.rpartition(".")[0] in held


def _vision_form(model: nn.Module, deploy: bool, features_only: bool, out_indices: Any) -> nn.Module:
    from zoo.vision import FeatureNet, VisionModel

    if not isinstance(model, VisionModel):
        raise ValueError(f"deploy and features_only are for vision models, got {type(model).__name__}")
    if deploy:
        model.fuse().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return FeatureNet(model, out_indices) if features_only else model

"""From the content of a config.json to the registered model and the configuration that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.checkpoints import read_config
from zoo.checkpoints.convert import foreign_config
from zoo.checkpoints.io import CONFIG, SINGLE, whole
from zoo.config import from_json
from zoo.limits import check_sizes
from zoo.registry import ModelEntry, entries, lookup

ADAPTER = "zoo-adapter"  # the type of a folder of ``zoo.save_adapter``


def known_beside(path: Path, weights: Mapping[str, Tensor], entry: ModelEntry) -> Any:
    """The configuration that the config.json of a folder, or beside a file as libraries name it, describes, if any.

    A folder's must be of the model's family; beside a file it may be another library's, of no concern here.
    """
    folder = whole(path) if path.is_dir() else path.parent
    if not (folder / CONFIG).exists() or not (path.is_dir() or path.name in SINGLE):
        return None
    try:
        return describe_model(read_config(folder), weights, str(folder), entry)[1]
    except ValueError:
        if path.is_dir():
            raise
    return None


def describe_model(
    content: Mapping[str, Any], weights: Mapping[str, Tensor], source: str, entry: ModelEntry | None = None
) -> tuple[ModelEntry, Any]:
    """The registered model and the configuration that a ``config.json`` describes; see ``recognise``.

    Args:
        content: of the ``config.json``.
        weights: what lies beside it, which tells how large the model can be.
        source: the folder, for errors.
        entry: the model that it must describe, in some configuration.

    Raises:
        ValueError: when it describes no model of the zoo, one of another family, or one far larger than the weights.
    """
    try:
        return recognise(content, entry, weights)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{Path(source) / CONFIG} describes no model of the zoo: {error}") from error


def recognise(
    content: Mapping[str, Any], entry: ModelEntry | None = None, weights: Mapping[str, Tensor] | None = None
) -> tuple[ModelEntry, Any]:
    """The registered model and the configuration that the content of a ``config.json`` describes.

    Where a layout says the family alone, the sizes are in the configuration and the model is ``entry``, or the family's
    first.

    Raises:
        LookupError, TypeError, ValueError, ...: for content that describes none, another family than ``entry``'s, or
            one far larger than the ``weights``.
    """
    if content.get("model_type") == ADAPTER:
        raise ValueError(f"it holds an adapter of {content.get('architecture')}: create that model with adapter=FOLDER")
    base, fields = foreign_config(content, entries())
    families = {known.family: known for known in reversed(entries().values())}
    found = families[base] if base in families else lookup(base)
    if entry is not None and found.family != entry.family:
        raise ValueError(f"it is of the family {found.family!r}, and {entry.name} of {entry.family!r}")
    start = entry if entry is not None and base in families else found
    check = None if weights is None else partial(check_sizes, tensors=weights)
    return entry or found, from_json(start.configure(), base, fields, check)

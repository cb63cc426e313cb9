"""From a model to a folder that ``create_model`` reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from zoo.changes import changes_of, described_changes, rebuilding
from zoo.checkpoints import write_folder
from zoo.checkpoints.write import as_given
from zoo.layers.quant import count_parameters, records, stored_bytes
from zoo.loading import common_dtype, tied
from zoo.quantize.files import card_rows, described_records
from zoo.registry import ModelEntry, lookup


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    notes: Mapping[str, str] | None = None,
    max_shard_size: int | str | None = None,
) -> Path:
    """Write ``model.safetensors``, ``config.json`` and a model card; ``create_model("local-dir:FOLDER")`` reads them.

    Weights of an earlier save go; a tokenizer in the folder stays, and one beside the files that the model was loaded
    from is copied. The module inside ``torch.compile``'s or DistributedDataParallel's is the one that is saved.
    Records of ``zoo.quantize`` are written as they are, and load as they were. Weights compressed otherwise (torchao's
    ``quantize_``) are written as the numbers they stand for: the folder loads as a plain model of the same outputs,
    which can be compressed again.

    Args:
        model: built by ``create_model``.
        folder: made where it does not exist.
        notes: further rows of the card, such as {"licence": "apache-2.0", "metric": "98.3 % accuracy", "recipe":
            "digits_vim_nano", "commit": "44174c2"}.
        max_shard_size: bytes of a file of weights, such as 5_000_000_000 or "5GB"; None writes one file.

    Raises:
        ValueError: for a model that ``create_model`` did not build or would build otherwise (a head replaced by hand, a
            grown vocabulary, an adapter), that was fused or that processes share, a tensor that is not plain and cannot
            be made so, or a path that is a file.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    if not isinstance(getattr(model, "config_name", None), str):
        raise ValueError(f"save_model takes a model built by create_model, got {type(model).__name__}")
    if getattr(model, "fused", False):
        raise ValueError("a fused model cannot be rebuilt from its configuration: save it before fuse() or deploy=True")
    if getattr(model, "parallel", None) is not None:
        raise ValueError(
            "processes share this model: load zoo.parallel.whole_state_dict(model) into a new one, and save that"
        )
    known: Any = model
    entry = lookup(known.config_name)
    compressed = described_records(model)
    done = described_changes(model) | compressed
    check_rebuilds(model, rebuilding(entry.model_class, done), known.config, entry.name)
    aliases = tied(model)
    tensors = {key: tensor for key, tensor in model.state_dict().items() if key not in aliases}
    held = records(model)
    plain = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] not in held}
    config = described(entry, known.config, plain) | done
    count = count_parameters(model)
    size = {"bits a weight": f"{8 * stored_bytes(model) / count:.2f}"} if compressed else {}
    changed = {"changed by": kinds} if (kinds := ", ".join(change.kind for change in changes_of(model))) else {}
    card = describe(entry, count, folder, changed | card_rows(model) | size | dict(notes or {}))
    companions = getattr(model, "source_folder", None)
    return write_folder(folder, tensors, config, card, companions=companions, max_shard_size=max_shard_size)


def check_rebuilds(model: nn.Module, build: Callable[[Any], nn.Module], config: Any, name: str) -> None:
    """Raise a ValueError unless ``build(config)`` takes the state dict of ``model`` back as it is."""
    held = model.state_dict()
    with torch.device("meta"):
        made = build(config)
    expected = made.state_dict()
    differences = [
        *(f"{key} is not of its configuration" for key in held if key not in expected),
        *(f"{key} is missing" for key in expected if key not in held),
        *(
            f"{key} has shape {tuple(tensor.shape)}, its configuration {tuple(expected[key].shape)}"
            for key, tensor in held.items()
            if key in expected and isinstance(tensor, Tensor) and tensor.shape != expected[key].shape
        ),
        *(f"{key} is {'' if key in tied(model) else 'not '}tied" for key in tied(model).keys() ^ tied(made).keys()),
    ]
    if differences:
        raise ValueError(
            f"create_model could not load this {name} again; nothing was written: {', '.join(differences[:5])}"
            f"{', ...' if differences[5:] else ''}. Change a model by its configuration, which is saved with it: "
            "create_model(..., vocab_size=, tie_embeddings=, num_classes=), model.reset_classifier(classes) or "
            "model.resize_token_embeddings(words); merge "
            "adapters first; torch.save(model.state_dict(), FILE) keeps the tensors as they are"
        )


def described(entry: ModelEntry, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``config.json``: model and configuration, and what ``zoo.integrations.transformers`` is found by."""
    found = {"model_type": "zoo", "architecture": entry.name, "config": dataclasses.asdict(config)}
    dtype = common_dtype(tensors)
    return found if dtype is None else found | {"dtype": str(dtype).removeprefix("torch.")}


def describe(entry: ModelEntry, count: int, folder: str | Path, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """A model card: what it is, its size, its paper, what else is known, and how to load it from a folder."""
    licence = f"license: {notes['licence']}\n" if "licence" in notes else ""
    rows = "".join(f"| {name} | {value} |\n" for name, value in notes.items())
    table = f"| | |\n| --- | --- |\n{rows}\n" if rows else ""
    return (
        f"---\nlibrary_name: efficient-zoo\n{licence}tags: [{entry.task}, {entry.family}]\n---\n\n# {entry.name}\n\n"
        f"{count:,} parameters. Architecture: {entry.paper.title} (arXiv {entry.paper.arxiv}, {entry.paper.year}).\n\n"
        f"{table}"
        f'```python\nimport zoo\n\nmodel = zoo.create_model("local-dir:{as_given(folder)}")'
        f"  # on the Hub: hf-hub:OWNER/NAME\n```\n"
    )

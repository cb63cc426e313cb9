"""Adapters in folders: their own tensors, what they were put on, and a few numbers by which it is known again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.adapt.method import Adapter, adapters_of
from zoo.changes import KEY, apply, described_changes, read_changes, rebuilding
from zoo.checkpoints import fit_state_dict, read_config, read_state_dict, write_folder
from zoo.checkpoints.io import CONFIG
from zoo.checkpoints.write import as_given
from zoo.config import FREE, from_json
from zoo.layers.adapt import before, undone_on_failure
from zoo.layers.quant import records
from zoo.quantize.files import described_records
from zoo.recognition import ADAPTER
from zoo.registry import lookup

BASE = "base"
SAMPLES, NEAR = 4, 2.0**-7  # numbers of a tensor that are compared, and how near: as bfloat16 has them


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write a model's adapters and nothing else: ``create_model(..., adapter=FOLDER)`` puts them on the same weights.

    Args:
        model: of ``create_model``, with adapters.
        folder: made where it does not exist.

    Raises:
        ValueError: for a model that has none or is not of ``create_model``, or a path that is a file.
    """
    known: Any = model
    there = adapters_of(model)
    if not there or not isinstance(getattr(model, "config_name", None), str):
        raise ValueError(f"save_adapter takes a model of create_model with adapters, got {type(model).__name__}")
    state = model.state_dict()
    tensors = {name: state[name] for name in own_names(model)}
    learnt = {_place(tensor) for tensor in tensors.values()}  # also under the names that they are tied to
    content = {
        "model_type": ADAPTER,
        "architecture": known.config_name,
        "config": dataclasses.asdict(known.config),
        KEY: [{"kind": adapter.kind, **dataclasses.asdict(adapter)} for adapter in there],
        BASE: dict(samples(model, {name: tensor for name, tensor in state.items() if _place(tensor) not in learnt})),
    }
    made = records(model)
    where = '"local-dir:FOLDER"' if made else f'"{known.config_name}", pretrained=True'
    what = "# FOLDER: of the model as zoo.quantize made it\n" if made else ""
    kinds = ", ".join(adapter.kind for adapter in there)
    count = sum(tensor.numel() for tensor in tensors.values())
    card = (
        f"---\nlibrary_name: efficient-zoo\n---\n\n# {kinds} for {known.config_name}\n\n{count:,} numbers.\n\n"
        f'```python\nimport zoo\n\n{what}model = zoo.create_model({where}, adapter="{as_given(folder)}")\n```\n'
    )
    return write_folder(folder, tensors, content, card)


def load_adapter(model: nn.Module, folder: str | Path) -> None:
    """Put the adapters of a folder on a model, in place; one without memory gets them untrained.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a folder of something else, a damaged one, or an adapter of another model or other weights; the
            model is as it was then.
    """
    known: Any = model
    content, tensors = read_config(folder), read_state_dict(folder)
    if content.get("model_type") != ADAPTER:
        raise ValueError(f"{folder} holds no adapter: give a folder of zoo.save_adapter")
    _check_model(known, content, folder)
    _check_weights(known, content.get(BASE, {}), folder)
    adapters = read_changes(content)
    if other := next((change.kind for change in adapters if not isinstance(change, Adapter)), None):
        raise ValueError(f"{folder} asks for {other}, which is no adapter")
    with torch.device("meta"):  # where what does not fit leaves no trace
        done = described_changes(model) | described_records(model)
        sketch = rebuilding(lookup(known.config_name).model_class, done)(known.config)
        for adapter in adapters:
            apply(sketch, adapter)
    state = sketch.state_dict()
    fitted = fit_state_dict(tensors, {name: state[name] for name in own_names(sketch)}, {}, str(folder))
    with undone_on_failure(model):
        for adapter in adapters:
            apply(model, adapter)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in fitted.items():
            state[name].copy_(tensor)


def is_adapter(folder: str | Path) -> bool:
    """Whether a path is a folder of ``save_adapter``."""
    return (Path(folder) / CONFIG).is_file() and read_config(folder).get("model_type") == ADAPTER


def own_names(model: nn.Module) -> list[str]:
    """Names in the state dict of all that is the adapters'."""
    return list(dict.fromkeys(name for adapter in adapters_of(model) for name in adapter.own(model)))


def samples(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, list[float]]]:
    """A few numbers of each tensor, under the name that it had before adapters came."""
    for name, tensor in tensors.items():
        if tensor.numel() and not tensor.is_meta and not tensor.is_complex():
            flat = tensor.detach().flatten()
            index = torch.linspace(0, len(flat) - 1, SAMPLES, device=flat.device).round().long()
            yield before(model, name), flat[index].double().tolist()


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _check_model(model: Any, content: Mapping[str, Any], folder: str | Path) -> None:
    name = str(content.get("architecture"))
    if name != (ours := getattr(model, "config_name", type(model).__name__)):
        raise ValueError(f"{folder} holds an adapter of {name}, the model is {ours}")
    theirs = from_json(lookup(name).configure(), name, content.get("config", {}))
    ours, theirs = vars(model.config), vars(theirs)
    if differing := [field for field in theirs if field not in FREE and ours.get(field) != theirs[field]]:
        fields = ", ".join(f"{field}={theirs[field]!r}" for field in differing)
        raise ValueError(f"{folder} holds an adapter of {name} with {fields}: create the model so")


def _check_weights(model: nn.Module, known: Mapping[str, list[float]], folder: str | Path) -> None:
    for name, numbers in samples(model, model.state_dict()):
        if name in known:
            ours, theirs = torch.tensor(numbers).double(), torch.tensor(known[name]).double()
            if not torch.allclose(ours, theirs, rtol=NEAR, atol=NEAR * 1e-3):
                raise ValueError(
                    f"{folder} holds an adapter of other weights: {name} differs. Create the model with those that it "
                    "was trained on (pretrained=True, or checkpoint_path)"
                )

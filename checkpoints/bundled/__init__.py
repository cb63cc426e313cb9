"""Weights that come with the package: nano models, trained by the recipes of this repository, under 1 MB each.

``index.json`` names for each its file, sha256, metric, recipe and seed; ``zoo.train.bundle`` makes them. Weights are
stored in 16 bits, or, where that is too large, matrices as 8-bit integers with a scale a row (the last dimension; of
the kernels of 2-D and 3-D convolutions an output channel): ``KEY`` and ``KEY.row_scale``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.io import read_state_dict

LIMIT = 1_000_000  # bytes of a file
FOLDER = Path(__file__).resolve().parent
INDEX = FOLDER / "index.json"
_SCALE = ".row_scale"
_LEAST = 1024  # elements from which on a matrix is worth a scale a row


@cache
def index() -> dict[str, dict[str, Any]]:
    """Name of a model -> what is known of its bundled weights."""
    return json.loads(INDEX.read_text(encoding="utf-8"))


def path(name: str) -> Path | None:
    """The file of a model's bundled weights, its sha256 checked; None where there are none.

    Raises:
        ValueError: when the file is not the one of the index.
    """
    return _checked(FOLDER, index()[name]) if name in index() else None


def _checked(folder: Path, entry: Mapping[str, Any]) -> Path:
    """The file of an entry of an index."""
    file = folder / entry["file"]
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "no file"
    if found != entry["sha256"]:
        raise ValueError(
            f"{file} is not the file this version was released with (sha256 {found}, expected {entry['sha256']}); "
            "nothing was loaded, install the package again or run `make bundled`"
        )
    return file


def read(name: str) -> dict[str, Tensor]:
    """The bundled weights of a model, under the zoo's names.

    Raises:
        ValueError: when there are none, or the file is not the one of the index.
    """
    file = path(name)
    if file is None:
        raise ValueError(f"no weights of {name!r} come with the package; those of {', '.join(index())} do")
    return unpack(read_state_dict(file))


def draft_layer(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The draft layer for a model's bundled weights: the fields it is made with, and its tensors.

    Raises:
        ValueError: when there is none, or the file is not the one of the index.
    """
    known = json.loads((FOLDER / "draft_layers" / "index.json").read_text(encoding="utf-8"))
    if name not in known:
        raise ValueError(f"no draft layer of {name!r} comes with the package; one of {', '.join(known)} does")
    return known[name]["fields"], unpack(read_state_dict(_checked(FOLDER / "draft_layers", known[name])))


def pack(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors in 16 bits, or matrices in 8 where 16 are too many for ``LIMIT``.

    The 16 bits are float16, whose numbers up to 65504 hold every weight, with 11 significant bits.
    """
    halves = {key: t.half() if t.is_floating_point() else t for key, t in state_dict.items()}
    if sum(tensor.nbytes for tensor in halves.values()) < 0.95 * LIMIT:
        return halves
    packed = {}
    for key, tensor in state_dict.items():
        if tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel() >= _LEAST:
            row = tuple(range(1, tensor.dim())) if tensor.dim() > 3 else -1
            scale = tensor.float().abs().amax(row, keepdim=True) / 127
            scale[scale == 0] = 1.0
            packed[key] = (tensor / scale).round().to(torch.int8)
            packed[key + _SCALE] = scale
        else:
            packed[key] = halves[key]
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``pack``, in float32."""
    return {
        key: tensor.float() * packed[key + _SCALE] if key + _SCALE in packed else tensor
        for key, tensor in packed.items()
        if not key.endswith(_SCALE)
    }

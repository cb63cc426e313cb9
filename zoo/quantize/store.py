"""What a long search has found so far: a file for each piece, so that the same call goes on where it was broken off."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.json_files import read_json

SIGNATURE = "quantization.json"


class Store:
    """A folder of finished pieces, of one call; without a folder nothing is kept.

    Args:
        folder: where they lie.
        signature: what makes the call another one: the method, its options, and what it works on.
        progress: called with the pieces done and all that are known of.

    Raises:
        ValueError: for a folder that holds the pieces of another call, or is a file, or does not say whose they are.
    """

    def __init__(
        self,
        folder: str | Path | None,
        signature: Mapping[str, Any],
        progress: Callable[[int, int], None] | None = None,
    ):
        self.progress, self.done, self.total = progress, 0, 0
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        if self.folder.is_file():
            raise ValueError(f"folder must be a folder, which may be new, {self.folder} is a file")
        self.folder.mkdir(parents=True, exist_ok=True)
        text, path = json.dumps(signature, sort_keys=True), self.folder / SIGNATURE
        asked = json.loads(text)
        try:
            held = read_json(path) if path.exists() else asked
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged, so that nobody knows whose pieces these are: delete {self.folder}, or name another"
            ) from error
        if other := [key for key in (held | asked) if held.get(key) != asked.get(key)]:
            raise ValueError(
                f"{self.folder} holds what a call of another {', '.join(other)} found: give it a folder of its own"
            )
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)

    def expect(self, pieces: int) -> None:
        """So many more pieces are to come."""
        self.total += pieces

    def once(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What ``compute`` returns: tensors by name, computed once and then read from the folder."""
        found = self._once(key, compute)
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, max(self.done, self.total))
        return found

    def _once(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        from safetensors.torch import load_file, save_file

        if self.folder is None:
            return compute()
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        if not path.exists():
            found = {name: tensor.contiguous() for name, tensor in compute().items()}
            partial = path.with_suffix(".partial")
            save_file(found, partial, metadata={"key": key})
            os.replace(partial, path)
        return load_file(path)


def digest(tensors: Iterable[Tensor]) -> str:
    """A short name for what tensors hold."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]

"""Models that share blocks, in one folder: each block of tensors once, by its content, and a list of them a model."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.io import read_state_dict
from zoo.checkpoints.json_files import read_json, write_json
from zoo.checkpoints.write import plain

NUMBER = re.compile(r"\.\d+\.")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
APART, SELF = " apart", "."  # after the name of a block; the name of a tensor that is the whole of one


class BlockStore:
    """A folder of models cut into blocks: the embedding, the head, and of each numbered layer its parts.

    A block is known by what is in it: names within the block, dtypes, shapes and numbers. Models that were tuned from
    one another share what was not tuned, on the disk and, where the store has read it, in memory: the tensors of one
    block are the same tensors for all of them. So give no two models of a store to an optimiser.

    ``models/NAME.json`` lists a model's blocks, ``blocks/HASH.safetensors`` has their tensors. A file is written under
    another name first, blocks before the list, and one process writes or removes at a time (``lock``), so that a list
    never names what is not there.

    Args:
        folder: of the store; made where it does not exist.

    Paper: Li et al., "BlockLLM: Multi-tenant Finer-grained Serving for Large Language Models", arXiv 2404.18322.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.read_blocks: dict[str, dict[str, Tensor]] = {}

    @property
    def names(self) -> list[str]:
        """Of the models that it has."""
        return sorted(path.stem for path in (self.folder / "models").glob("*.json"))

    @property
    def nbytes(self) -> int:
        """Of the tensors on the disk, each block once."""
        return sum(t.nbytes for key in self._kept() for t in read_state_dict(self._file(key)).values())

    def add(
        self,
        name: str,
        state_dict: Mapping[str, Tensor],
        config: Mapping[str, Any],
        similar: float | None = None,
        apart: Collection[str] = (),
    ) -> dict[str, str]:
        """Write a model; one of that name goes.

        Args:
            name: of letters, digits, "-", "_" and ".".
            state_dict: its tensors.
            config: the content of its ``config.json``.
            similar: a block is also left out for one of the same shapes and dtypes whose numbers have at least this
                cosine with its own, of all the block's tensors side by side. The model is another one then. Cosines
                tell nothing of scale: compare outputs, too.
            apart: names of tensors that are no part of the blocks around them, such as an adapter's.

        Returns:
            Name of a block -> what it is known by.

        Raises:
            ValueError: for a name that is none, or a ``similar`` outside (0, 1].
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"a model's name has letters, digits, '-', '_' and '.', got {name!r}")
        if similar is not None and not 0 < similar <= 1:
            raise ValueError(f"similar is a cosine in (0, 1], got {similar}")
        for part in ("models", "blocks"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        with self._alone():
            known = self._kept() if similar is not None else set()
            blocks = {}
            for block, tensors in cut(state_dict, apart).items():
                key = digest(tensors)
                if similar is not None and key not in known:
                    key = next((other for other in sorted(known) if self._cosine(other, tensors) >= similar), key)
                if not self._file(key).exists():
                    self._write(key, tensors)
                blocks[block] = key
            _replace(self._list(name), lambda path: write_json(path, {"config": dict(config), "blocks": blocks}))
            self._sweep()
        return blocks

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the configuration of a model; blocks that were read before are the same tensors.

        Raises:
            FileNotFoundError: for a name that it has not. ValueError: for a list or a block that is damaged.
        """
        content = self._content(name)
        found: dict[str, Tensor] = {}
        for block, key in content["blocks"].items():
            if key not in self.read_blocks:
                held = read_state_dict(self._file(key))
                self.read_blocks[key] = {inner: tensor.clone() for inner, tensor in held.items()}  # aligned, so shared
            place = block.removesuffix(APART)
            found |= {place if inner == SELF else f"{place}.{inner}": t for inner, t in self.read_blocks[key].items()}
        return found, content["config"]

    def remove(self, name: str) -> None:
        """Forget a model, and the blocks that no other has.

        Raises:
            FileNotFoundError: for a name that it has not.
        """
        self._content(name)
        with self._alone():
            self._list(name).unlink()
            self._sweep()

    def shared(self, one: str, other: str) -> float:
        """The share of the bytes of one model that another has as well."""
        theirs = set(self._content(other)["blocks"].values())
        sizes = {key: sum(t.nbytes for t in read_state_dict(self._file(key)).values()) for key in self._keys(one)}
        return sum(size for key, size in sizes.items() if key in theirs) / sum(sizes.values())

    def _content(self, name: str) -> dict[str, Any]:
        if not self._list(name).is_file():
            raise FileNotFoundError(f"{self.folder} has no model {name!r}; it has {', '.join(self.names) or 'none'}")
        content = read_json(self._list(name))
        keys = content.get("blocks")
        if not isinstance(keys, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(key)) for key in keys.values()):
            raise ValueError(f"{self._list(name)} lists no blocks: add the model again")
        return content

    def _keys(self, name: str) -> set[str]:
        return set(self._content(name)["blocks"].values())

    def _kept(self) -> set[str]:
        return {key for name in self.names for key in self._keys(name)}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: what is not listed yet is nobody else's."""
        from filelock import FileLock

        with FileLock(self.folder / "lock"):
            yield

    def _sweep(self) -> None:
        kept = self._kept()
        for path in (self.folder / "blocks").glob("*.safetensors"):
            if path.stem not in kept:
                path.unlink()
                self.read_blocks.pop(path.stem, None)

    def _cosine(self, key: str, tensors: Mapping[str, Tensor]) -> float:
        theirs = read_state_dict(self._file(key))
        form = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if form != {name: (tensor.shape, tensor.dtype) for name, tensor in theirs.items()}:
            return -1.0
        a, b = (torch.cat([part[name].flatten().double() for name in sorted(form)]) for part in (tensors, theirs))
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

    def _write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save_file

        held = {name: plain(name, tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}
        _replace(self._file(key), lambda path: save_file(held, path, metadata={"format": "pt"}))

    def _file(self, key: str) -> Path:
        return self.folder / "blocks" / f"{key}.safetensors"

    def _list(self, name: str) -> Path:
        return self.folder / "models" / f"{name}.json"


def cut(state_dict: Mapping[str, Tensor], apart: Collection[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Name of a block -> its tensors by their names within it: up to the first number and the part after it, or the
    first part where there is no number; those ``apart`` in blocks of their own."""
    blocks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        found = NUMBER.search(name)
        start = found.end() if found else 0
        block, _, inner = name[start:].partition(".")
        block = name[:start] + block + (APART if name in apart else "")
        blocks.setdefault(block, {})[inner or SELF] = tensor
    return blocks


def digest(tensors: Mapping[str, Tensor]) -> str:
    """What a block is known by: SHA-256 of its names, dtypes, shapes and numbers."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = plain(name, tensors[name]).detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _replace(target: Path, write: Any) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        path = Path(file.name)
    try:
        write(path)
        os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)

"""Folders of models: written so that a reader finds the old model or the new one, and no file of a failed save."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.io import CONFIG, INDICES, PREVIOUS, SINGLE, WEIGHTS, read_config, whole
from zoo.checkpoints.json_files import read_json, write_json

CARD = "README.md"
COMPANIONS = (  # what lies beside a model and is not of it: how its text is prepared and generated
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a config.json, for those who generate
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def as_given(folder: str | Path) -> str:
    """How a card names its folder: as it was given, of an absolute path the last name."""
    return Path(folder).name if Path(folder).is_absolute() else Path(folder).as_posix()


def write_folder(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    card: str,
    *,
    companions: Path | None = None,
    max_shard_size: int | str | None = None,
) -> Path:
    """Write ``model.safetensors`` (or shards of it and their index), ``config.json`` and ``README.md``.

    Whenever this ends, and if the process is killed, ``read_config`` and ``read_state_dict`` find the model that was in
    the folder or the new one, never files of both: its ``config.json`` goes first and comes last, and in between the
    earlier model stays in a folder ".previous". The weights of the earlier one go then: shards and their index,
    ``pytorch_model.bin``. Whatever else is in the folder stays, a tokenizer for one.

    Args:
        folder: made where it does not exist.
        state_dict: tensors of any device.
        config: content of the ``config.json``.
        card: the model card.
        companions: a folder whose tokenizer and generation settings are copied, where ``folder`` has none, and whose
            ``config.json`` says which tokens begin and end a text.
        max_shard_size: bytes of a file, such as 5_000_000_000 or "5GB"; None writes one file.

    Raises:
        ValueError: for a path that is a file, or a size that is none.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder to save into")
    if companions is not None and (whole(companions) / CONFIG).exists():
        known = read_config(companions)
        config = {**config, **{name: known[name] for name in TOKEN_IDS if known.get(name) is not None}}
    tensors = _unshared(state_dict)
    shards = _shards(tensors, _bytes(max_shard_size))
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Path], Any]] = {
        name: lambda path, held=held: save_file(held, path, metadata={"format": "pt"}) for name, held in shards.items()
    }
    if len(shards) > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        where = {key: name for name, held in shards.items() for key in held}
        writers[INDICES[0]] = lambda path: write_json(path, {"metadata": {"total_size": size}, "weight_map": where})
    writers[CARD] = lambda path: path.write_text(card, encoding="utf-8")
    writers[CONFIG] = lambda path: write_json(path, config)
    with _written(folder, writers) as files, _kept(folder, {*weights_in(folder), CARD, CONFIG}, files):
        for name, path in files.items():
            os.replace(path, folder / name)
    if companions is not None and companions.resolve() != folder.resolve():
        new = [companions / name for name in COMPANIONS if not (folder / name).exists()]
        with _written(folder, {path.name: partial(shutil.copyfile, path) for path in new if path.is_file()}) as files:
            for name, path in files.items():
                os.replace(path, folder / name)
    return folder


def plain(name: str, tensor: Any) -> Tensor:
    """A tensor as a file holds it; a compressed one (torchao's, torch's quantised) as what it stands for, and one
    that torch conjugates or negates as it is read as the result: a file would keep the numbers beneath.

    Raises:
        ValueError: naming it, for what is neither a plain tensor nor can be turned into one.
    """
    kind = type(tensor)
    if issubclass(kind, Tensor) and (tensor.is_quantized or kind.dequantize is not Tensor.dequantize):
        return tensor.dequantize()
    if kind not in (Tensor, torch.nn.Parameter):
        raise ValueError(
            f"{name} is a {kind.__name__}, a file holds plain tensors: save the model before it was compressed or "
            "sharded, or with the tensors gathered; a tensor class with a method dequantize() is saved as its result"
        )
    return tensor.resolve_conj().resolve_neg()


@contextmanager
def _written(folder: Path, writers: Mapping[str, Callable[[Path], Any]]) -> Iterator[dict[str, Path]]:
    """Name -> a file under another name, all of them complete; those that are not renamed go."""
    from safetensors import SafetensorError

    written: dict[str, Path] = {}
    try:
        for name, write in writers.items():
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                written[name] = Path(file.name)
            write(written[name])
            os.chmod(written[name], 0o644)
        yield written
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{folder} cannot be written: {error}") from error
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)


@contextmanager
def _kept(folder: Path, earlier: Collection[str], new: Collection[str]) -> Iterator[None]:
    """While files ``new`` take the place of ``earlier`` ones, these are in PREVIOUS; after a failure they come back."""
    previous = folder / PREVIOUS
    if whole(folder) == folder:  # and no save was broken off
        shutil.rmtree(previous, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=folder))
        for name in earlier:
            if (folder / name).is_file():
                _copy(folder / name, made / name)
        made.rename(previous)
    try:
        for name in sorted(earlier, key=lambda name: name != CONFIG):  # from here on PREVIOUS is the model
            (folder / name).unlink(missing_ok=True)
        yield
    except BaseException:
        for name in new:
            (folder / name).unlink(missing_ok=True)
        for file in sorted(previous.iterdir(), key=lambda file: file.name == CONFIG):
            _copy(file, folder / file.name)
        raise
    finally:
        if whole(folder) == folder:
            shutil.rmtree(previous)


def _copy(source: Path, target: Path) -> None:
    """A second name of a file, or where a disk has no such thing a second file."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _unshared(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own: a file has no shared tensors."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in state_dict.items():
        tensor = plain(name, tensor).detach().cpu().contiguous()
        tensors[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    return tensors


def _shards(tensors: Mapping[str, Tensor], limit: int | None) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors, in order, as many as fit; one that is larger alone has a file of its own."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if limit is not None and parts[-1] and size + tensor.nbytes > limit:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}


def _bytes(size: int | str | None) -> int | None:
    if size is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", str(size).upper())
    number = int(float(found[1]) * _UNITS[found[2]]) if found else size
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"max_shard_size must be bytes, or a text such as '5GB' or '200MB', got {size!r}")
    return number


def weights_in(folder: Path) -> set[str]:
    """Files of weights that a reader of the folder would find: whole ones, indices, and the shards that these name."""
    found = {name for name in (*SINGLE, *INDICES) if (folder / name).is_file()}
    for index in found & set(INDICES):
        found |= set(_named(folder / index))
    return found


def _named(index: Path) -> Iterator[str]:
    try:
        shards = set(read_json(index)["weight_map"].values())
    except (ValueError, LookupError, AttributeError, TypeError):
        return  # a damaged index goes; what it may have named stays
    for shard in shards:
        if isinstance(shard, str) and Path(shard).name == shard and (index.parent / shard).is_file():
            yield shard

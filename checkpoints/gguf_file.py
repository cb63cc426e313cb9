"""GGUF files, through the package ``gguf`` of llama.cpp's authors: a model's weights and its vocabulary."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.checkpoints.convert.gguf import Converted
from zoo.checkpoints.json_files import read_json

FORMATS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # in which matrices are written
_KEPT = (".A_log", ".D", ".conv1d.weight", ".norm.weight", "rope_freqs.weight")  # float32 whatever their shape
_BYTES, _DOCUMENT = 256, 0  # tokens of models that read bytes, and the one around a text
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE = {  # how a text is cut before its bytes are merged -> llama.cpp's name
    _WORDS % r"\p{N}{1,3}": "llama-bpe",
    _WORDS % r"\p{N}": "qwen2",
    None: "gpt-2",
}
_NORMAL, _CONTROL, _UNUSED, _DEFINED = 1, 3, 5, 4  # kinds of tokens


class Vocabulary(NamedTuple):
    """Tokens as a byte-level tokenizer of merges writes them, the merges, and the rest that a file says of them."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    ids: dict[str, int]


def write_gguf(
    path: Path, name: str, converted: Converted, vocabulary: Vocabulary | None, form: str | None = None
) -> Path:
    """Write a model for llama.cpp; the file is there when it is whole.

    Args:
        path: the file.
        name: of the model, for those who read the file.
        converted: see ``to_gguf``.
        vocabulary: None writes a file that knows token ids alone.
        form: of matrices, one of ``FORMATS``; None keeps each as it is. Rows that the blocks of a form do not divide
            are written in float16, and all that is no matrix in float32.

    Raises:
        ImportError: without the package ``gguf``.
        ValueError: for another form, or a tensor that the architecture has no name for; nothing is written.
    """
    gguf = _package()
    if form is not None and form not in FORMATS:
        raise ValueError(f"a GGUF file has matrices in {', '.join(FORMATS)}, got {form!r}")
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == converted.architecture)
    names = gguf.get_tensor_name_map(kind, converted.metadata["block_count"])
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, converted.architecture)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in converted.metadata.items():
        _add(writer, f"{converted.architecture}.{key}", value)
    _add_vocabulary(writer, vocabulary, converted.metadata["vocab_size"])
    for theirs, tensor in converted.tensors.items():
        found = theirs if theirs == "rope_freqs.weight" else names.get_name(theirs, (".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp's {converted.architecture} has no place for {theirs}")
        stored, data = _encoded(gguf, theirs, tensor, form)
        writer.add_tensor(found, data, raw_dtype=stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_vocabulary(folder: Path | None, size: int) -> Vocabulary | None:
    """What a folder's ``tokenizer.json`` says; the bytes, for a model of 256 tokens without one; else nothing.

    Args:
        folder: of the model; None has no files.
        size: tokens of the model: those that the file has not are unused.

    Raises:
        ValueError: for a tokenizer that merges no bytes, or cuts a text as llama.cpp has no name for.
    """
    letters = _letters()
    file = folder / "tokenizer.json" if folder is not None else None
    if file is None or not file.exists():
        kinds = [_CONTROL, *[_NORMAL] * (_BYTES - 1)]
        ids = {"bos_token_id": _DOCUMENT, "eos_token_id": _DOCUMENT}
        return Vocabulary(letters, kinds, [], "gpt-2", ids) if size == _BYTES else None
    described = read_json(file)
    table, merges = described["model"].get("vocab"), described["model"].get("merges")
    if described["model"].get("type") != "BPE" or not set(letters) <= set(table):
        raise ValueError(
            f"{file} is no tokenizer that merges bytes, the one kind written here: take the file away for a GGUF "
            "file of token ids alone, or let llama.cpp's own converter write it"
        )
    added = {one["id"]: one for one in described.get("added_tokens", ())}
    tokens = {index: token for token, index in table.items()} | {index: one["content"] for index, one in added.items()}
    kinds = [
        _UNUSED if index not in tokens else _NORMAL if index not in added
        else _CONTROL if added[index].get("special") else _DEFINED
        for index in range(size)
    ]  # fmt: skip
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    listed = [tokens.get(index, f"[unused {index}]") for index in range(size)]
    return Vocabulary(listed, kinds, pairs, _pre(described.get("pre_tokenizer"), file), _special(folder, tokens))


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError("GGUF files are written by the package gguf: pip install gguf") from error
    return gguf


def _add(writer: Any, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    adders[type(value)](key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary | None, size: int) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges or [f"{vocabulary.tokens[0]} {vocabulary.tokens[0]}"])  # one must be
    for key, index in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", index)
    writer.add_add_bos_token("bos_token_id" in vocabulary.ids)


def _encoded(gguf: Any, name: str, tensor: Tensor, form: str | None) -> tuple[Any, np.ndarray]:
    types = gguf.GGMLQuantizationType
    tensor = tensor.detach().cpu().contiguous()
    several = tensor.dim() == 3 and name.split(".")[-3] == "experts"
    if (tensor.dim() != 2 and not several) or name.endswith(_KEPT):
        return types.F32, tensor.float().numpy()
    if form is None:
        form = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(tensor.dtype, "f32")
    if form.startswith("q") and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[types[form.upper()]][0]:
        form = "f16"
    stored = types[form.upper()]
    return stored, gguf.quants.quantize(tensor.float().numpy(), stored)


def _letters() -> list[str]:
    """The character that stands for each byte in vocabularies of merged bytes: its own where it has a visible one."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(_BYTES, 2 * _BYTES))
    return [chr(byte if byte in shown else next(others)) for byte in range(_BYTES)]


def _pre(described: Mapping[str, Any] | None, file: Path) -> str:
    parts = (described or {}).get("pretokenizers", [described or {}])
    cut = next((part["pattern"]["Regex"] for part in parts if part.get("type") == "Split"), None)
    if cut not in _PRE:
        raise ValueError(f"{file} cuts texts by {cut!r}, for which no name of llama.cpp is known here")
    return _PRE[cut]


def _special(folder: Path | None, tokens: Mapping[int, str]) -> dict[str, int]:
    """bos, eos and padding by id, from the file beside the tokenizer."""
    file = folder / "tokenizer_config.json" if folder is not None else None
    said = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}
    ids = {token: index for index, token in tokens.items()}
    found = {}
    for word, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("pad", "padding_token_id")):
        token = said.get(f"{word}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            found[key] = ids[token]
    return found

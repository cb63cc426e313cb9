"""What a GGUF file says of tokens, where llama.cpp then reads texts as the tokenizer does.

The source of how llama.cpp cuts texts, and of what it leaves out: its own reader (github.com/ggml-org/llama.cpp,
src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zoo.checkpoints.json_files import read_json

_BYTES, _DOCUMENT = 256, 0  # tokens of models that read bytes, and the one around a text
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE, _ONE = (f"Split by {_WORDS % digits}" for digits in (r"\p{N}{1,3}", r"\p{N}"))
_ENGLISH, _WHOLE = (f"ByteLevel with use_regex {cut}" for cut in (True, False))
_PRE = {  # how a text is cut before its bytes are merged, and ignore_merges -> llama.cpp's name
    ((_THREE, _WHOLE), True): "llama-bpe",
    ((_THREE, _WHOLE), False): "smaug-bpe",
    ((_ONE, _WHOLE), False): "qwen2",
    ((_ENGLISH,), False): "gpt-2",
    (("Digits one by one", _ENGLISH), False): "smollm",
}
_NORMAL, _CONTROL, _UNUSED, _DEFINED = 1, 3, 5, 4  # kinds of tokens
_CHANGING = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")  # options of merges


class Vocabulary(NamedTuple):
    """Tokens as a byte-level tokenizer of merges writes them, the merges, and the rest that a file says of them.

    Attributes:
        tokens: by id.
        kinds: llama.cpp's, of each.
        merges: pairs, the first one first.
        pre: llama.cpp's name of how texts are cut.
        ids: of special tokens, under the names of the file.
        begins: every text begins with the token that begins one.
        ends: every text ends with the token that ends one.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    ids: dict[str, int]
    begins: bool
    ends: bool


def read_vocabulary(folder: Path | None, size: int) -> Vocabulary | None:
    """What a folder's ``tokenizer.json`` says; the bytes, for a model of 256 tokens without one; else nothing.

    Texts that are not in Unicode's form NFC, and spaces around some tokens, may be read otherwise by llama.cpp: there
    is a warning for tokenizers that mind them.

    Args:
        folder: of the model; None has no files.
        size: tokens of the model: those that the file has not are unused.

    Raises:
        ValueError: for a tokenizer that merges no bytes, or does with texts what llama.cpp would not do.
    """
    letters = _letters()
    file = folder / "tokenizer.json" if folder is not None else None
    if folder is None or file is None or not file.exists():
        kinds = [_CONTROL, *[_NORMAL] * (_BYTES - 1)]
        ids = {"bos_token_id": _DOCUMENT, "eos_token_id": _DOCUMENT}
        return Vocabulary(letters, kinds, [], "gpt-2", ids, True, False) if size == _BYTES else None
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
    steps = tuple(map(_step, _parts(described.get("pre_tokenizer"), "pretokenizers")))
    pre = _PRE.get((steps, bool(described["model"].get("ignore_merges"))))
    ids, around = _special(folder, tokens), _around(file)
    wrong = [*_unlike(described), *_beside(around, ids, tokens)]
    if pre is None:
        wrong.append(f"its pre_tokenizer ({', then '.join(steps) or 'none'}) has no name there")
    if wrong or pre is None:
        raise ValueError(
            f"llama.cpp would read texts otherwise than {file}: {'; '.join(wrong)}; take the file away for a GGUF file "
            "of token ids alone"
        )
    if unsure := list(_unsure(described)):
        warnings.warn(f"{file}: llama.cpp reads some texts otherwise, for {'; '.join(unsure)}", stacklevel=3)
    return Vocabulary(listed, kinds, pairs, pre, ids, *map(bool, around))


def _letters() -> list[str]:
    """The character that stands for each byte in vocabularies of merged bytes: its own where it has a visible one."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(_BYTES, 2 * _BYTES))
    return [chr(byte if byte in shown else next(others)) for byte in range(_BYTES)]


def _parts(described: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The steps of a sequence; of one that is none, itself."""
    return [] if described is None else described.get(name, [described])


def _step(part: Mapping[str, Any]) -> str:
    """One cut of texts, in words: the whole part where something about it is not as in ``_PRE``."""
    match part:
        case {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}:
            return f"Split by {cut}"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return f"ByteLevel with use_regex {part.get('use_regex', True)}"
        case {"type": "Digits", "individual_digits": True}:
            return "Digits one by one"
    return json.dumps(part)


def _unlike(described: Mapping[str, Any]) -> Iterator[str]:
    """What a tokenizer does and llama.cpp leaves out, but for the cuts."""
    kinds = [part["type"] for part in _parts(described.get("normalizer"), "normalizers")]
    if others := [kind for kind in kinds if kind != "NFC"]:
        yield f"its normalizer ({', '.join(others)}) changes them first"
    for option in _CHANGING:
        if value := described["model"].get(option):
            yield f"its merges have {option} {value!r}"


def _unsure(described: Mapping[str, Any]) -> Iterator[str]:
    """What a tokenizer does, llama.cpp leaves out, and most texts do not show."""
    if _parts(described.get("normalizer"), "normalizers"):
        yield "this tokenizer brings them into Unicode's form NFC first: give it texts in that form"
    options = ("lstrip", "rstrip", "single_word")
    added = described.get("added_tokens", ())
    if minding := [one["content"] for one in added if any(map(one.get, options))]:
        yield f"this tokenizer minds what stands beside {', '.join(minding)}"


def _around(file: Path) -> tuple[list[int], list[int]]:
    """The tokens that are put before every text, and those after it."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # all that this library raises
        raise ValueError(f"{file} is no tokenizer: {str(error)[:200]}; fetch it again") from error
    backend.no_padding()
    backend.no_truncation()
    inner, whole = (backend.encode("x", add_special_tokens=special).ids for special in (False, True))
    width = len(inner)
    start = next((at for at in range(len(whole)) if whole[at : at + width] == inner), len(whole))
    return whole[:start], whole[start + width :]


def _beside(around: tuple[list[int], list[int]], ids: dict[str, int], tokens: Mapping[int, str]) -> Iterator[str]:
    """What of that is not one token at most; the one becomes that of the file where its folder names none."""
    for place, word, found in zip(("before", "after"), ("bos", "eos"), around, strict=True):
        if len(found) > 1 or (found and ids.setdefault(f"{word}_token_id", found[0]) != found[0]):
            put = ", ".join(map(tokens.__getitem__, found))
            yield f"it puts {put} {place} each, where there is room for its {word}_token alone"


def _special(folder: Path, tokens: Mapping[int, str]) -> dict[str, int]:
    """bos, eos and padding by id, from the file beside the tokenizer."""
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    ids = {token: index for index, token in tokens.items()}
    found = {}
    for word, key in (("bos", "bos_token_id"), ("eos", "eos_token_id"), ("pad", "padding_token_id")):
        token = said.get(f"{word}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            found[key] = ids[token]
    return found

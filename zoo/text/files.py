"""Tokenizers as the `tokenizers` library writes them, with the files that transformers puts beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.checkpoints.json_files import read_json
from zoo.text.template import ChatTemplate, templates
from zoo.text.tokenizer import Tokenizer

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
STANDARD = {f"{kind}_token" for kind in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}
LARGEST = {TOKENIZER: 128 << 20, TEMPLATE: 1 << 20}  # bytes; published ones have at most some 35 MB
LARGEST_OTHER = 16 << 20


class FileTokenizer(Tokenizer):
    """The tokenizer of a folder's tokenizer.json.

    Args:
        folder: with tokenizer.json and, where there are any, tokenizer_config.json, special_tokens_map.json,
            chat_template.jinja, and the generation_config.json or config.json that tell what ends a text.
        source: of the folder, for errors.

    Raises:
        ValueError: for a file that is too large, damaged, or says what it may not.
    """

    def __init__(self, folder: Path, source: str):
        super().__init__()
        self.folder, self.source = folder, source
        self._backend = _backend(_within(folder / TOKENIZER))
        config = _object(folder / CONFIG)
        self._add(config.get("added_tokens_decoder", {}), folder / CONFIG)
        self.special_tokens = _special_tokens(config, _object(folder / SPECIAL), folder)
        self.templates = templates(stored, source) if (stored := config.get("chat_template")) else {}
        if (folder / TEMPLATE).exists():
            self.templates["default"] = ChatTemplate(_text(folder / TEMPLATE), source)
        self.vocab_size, self.text_size = (
            1 + max(self._backend.get_vocab(with_added_tokens=added).values(), default=-1) for added in (True, False)
        )
        if self.vocab_size < 1:
            raise ValueError(f"{folder / TOKENIZER} has no tokens; fetch it again")
        self.bos_id = self._id("bos_token")
        own = self._id("eos_token")
        self.eos_ids = tuple(dict.fromkeys([*([] if own is None else [own]), *_generation_ends(folder)]))

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def _id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        found = None if token is None else self._backend.token_to_id(token)
        if token is not None and found is None:
            raise ValueError(f"{self.folder}: the {name} {token!r} is no token of {TOKENIZER}; fetch both again")
        return found

    def _add(self, stored: Any, path: Path) -> None:
        """Tokens that tokenizer_config.json has and tokenizer.json lacks, at the ids that it names."""
        from tokenizers import AddedToken

        wrong = ValueError(f"{path}: added_tokens_decoder must hold ids and their tokens; fetch it again")
        if not isinstance(stored, dict) or not all(key.isdigit() and len(key) < 10 for key in stored):
            raise wrong
        for key in sorted(stored, key=int):
            content = _content(stored[key])
            if content is None:
                raise wrong
            if self._backend.token_to_id(content) is not None:
                continue
            flags = {
                name: isinstance(stored[key], dict) and stored[key].get(name) is True
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            self._backend.add_tokens([AddedToken(content, **flags)])
            if (found := self._backend.token_to_id(content)) != int(key):
                raise ValueError(f"{path}: the token {content!r} has the id {key}, and {found} after {TOKENIZER}'s own")


def _backend(path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    with _foreign_errors(path):
        backend = Backend.from_file(str(path))
        backend.no_padding()  # a text has the ids it has
        backend.no_truncation()
    return backend


@contextmanager
def _foreign_errors(path: Path) -> Iterator[None]:
    """What `tokenizers` raises, mere Exceptions and panics of Rust, as a ValueError that names the file."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path} is no tokenizer: {str(error)[:200]}; fetch it again") from error


def _within(path: Path) -> Path:
    """A file that is not too large to be read."""
    size, largest = path.stat().st_size, LARGEST.get(path.name, LARGEST_OTHER)
    if size > largest:
        raise ValueError(f"{path} has {size:,} bytes; such a file has at most {largest:,}")
    return path


def _text(path: Path) -> str:
    try:
        return _within(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}; fetch it again") from error


def _object(path: Path) -> dict[str, Any]:
    return read_json(_within(path)) if path.exists() else {}


def _special_tokens(config: Mapping[str, Any], listed: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Such as {"eos_token": "</s>"}, as transformers reads them: special_tokens_map.json counts in folders that are
    older than added_tokens_decoder, and there above all."""
    found: dict[str, str] = {}
    for name, content in ((CONFIG, config), (SPECIAL, {} if "added_tokens_decoder" in config else listed)):
        for key, value in content.items():
            token = _content(value)
            if token is None and value is not None and key in STANDARD:
                raise ValueError(f"{folder / name}: {key} must be a token, got {str(value)[:80]}; fetch it again")
            if token is not None and key.endswith("_token"):
                found[key] = token
    return found


def _content(value: Any) -> str | None:
    """The text of a token, which files hold alone or with how it is matched."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _generation_ends(folder: Path) -> list[int]:
    """The ids that end a text by generation_config.json or, where it names none, config.json."""
    for name in ("generation_config.json", "config.json"):
        ends = _object(folder / name).get("eos_token_id")
        if ends is None:
            continue
        ids = ends if isinstance(ends, list) else [ends]
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ids):
            raise ValueError(f"{folder / name}: eos_token_id must be an id or a list of them, got {str(ends)[:80]}")
        return ids
    return []

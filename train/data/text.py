"""Text as language-model batches: bytes (or any tokenizer's ids), split by document."""

from __future__ import annotations

import glob
import math
import sysconfig
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.train.data.base import DataModule
from zoo.train.data.loader import Source
from zoo.train.data.split import check_fraction, document_split
from zoo.train.data.windows import EvaluationWindows, TrainingWindows, read_bytes

FEW = 10  # files, below which each is cut
SEPARATOR = 0  # the byte that starts every document: NUL does not occur in text


class TextDataModule(DataModule):
    """Text by documents as `(tokens (B, T), labels (B, T))`, int64; a subclass says in `read()` which documents.

    Labels have transformers' meaning: a model shifts them itself (`labels[:, t + 1]` is predicted from
    `tokens[:, : t + 1]`) and ignores -100.

    Every document is preceded by a separator, byte 0. **Training** reads windows of `seq_len` tokens from the training
    documents joined to one stream. **Evaluation** reads each document by itself in windows of `seq_len` tokens and
    scores every one of its tokens exactly once: the first given the separator, the others given what precedes them in
    their window. A window scores all but its first `context` tokens, which the one before it has scored; a document's
    first window scores all but the separator. So bits per byte, the summed cross-entropy in nats / ln 2 / the number of
    bytes, is well-defined, and `bits_per_byte` computes it from a mean loss per scored token.

    Args:
        seq_len: T, tokens per window, separator included.
        batch_size, eval_batch_size, num_workers, seed: see `DataModule`.
        val_fraction, test_fraction: share of the text, in bytes, that each held-out split may take.
        split_seed: which documents are held out; independent of `seed`.
        windows: how training cuts the stream in an epoch: "strided", side by side from an offset drawn for the epoch,
            or "random", each from a start of its own.
        context: tokens at the start of an evaluation window that are only read; more context scores better and costs
            more windows.
        tokenizer: None for bytes, a transformers tokenizer's name or folder (extra `[text]`), or any function from a
            string to token ids (then give `vocab_size` and `separator`).
        vocab_size, separator: of the tokenizer; of a transformers tokenizer they are its length and end-of-text token.

    Raises:
        ValueError: no text, a size out of range, or too little text for a split.
    """

    def __init__(
        self,
        *,
        seq_len: int = 256,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        windows: Literal["strided", "random"] = "strided",
        context: int = 1,
        tokenizer: str | Callable[[str], list[int]] | None = None,
        vocab_size: int | None = None,
        separator: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed)
        check_fraction(val_fraction=val_fraction, test_fraction=test_fraction)
        if seq_len < 2:
            raise ValueError(f"seq_len must be >= 2, one token to read and one to predict, got {seq_len}")
        if not 1 <= context < seq_len:
            raise ValueError(f"context must be in [1, seq_len), got context={context}, seq_len={seq_len}")
        if windows not in ("strided", "random"):
            raise ValueError(f"windows must be 'strided' or 'random', got {windows!r}")
        if callable(tokenizer) and (vocab_size is None or separator is None):
            raise ValueError("a tokenizer function needs vocab_size and separator, got one of them or none")
        if tokenizer is None and not 0 <= (separator or SEPARATOR) < 256:
            raise ValueError(f"without a tokenizer the separator must be a byte, got {separator}")
        self.seq_len, self.context, self.windows = seq_len, context, windows
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.tokenizer = tokenizer
        self._vocab_size, self._separator = vocab_size, separator
        self._pretrained: Any = None
        self._documents: dict[str, list[str]] = {}

    @abstractmethod
    def read(self) -> list[str]:
        """The documents, in an order that does not change."""

    def split(self, documents: list[str]) -> dict[str, list[str]]:
        """Documents by split: "train", "val", "test"."""
        sizes = [len(document.encode()) for document in documents]
        fractions = {"test": self.test_fraction, "val": self.val_fraction}
        numbers = document_split(sizes, fractions, self.split_seed)
        return {name: [documents[number] for number in chosen] for name, chosen in numbers.items()}

    def documents(self, split: str) -> list[str]:
        """The documents of "train", "val" or "test"."""
        if not self._documents:
            documents = [document for document in self.read() if document]
            if not documents:
                raise ValueError(f"{type(self).__name__} found no text: every document is empty")
            self._documents = self.split(documents)
        return self._documents[split]

    @property
    def vocab_size(self) -> int:
        if self._vocab_size is not None:
            return self._vocab_size
        return 256 if self.tokenizer is None else len(self._load_tokenizer())

    @property
    def separator(self) -> int:
        """The token that precedes every document; a prompt that starts with it starts a document."""
        if self._separator is not None:
            return self._separator
        return SEPARATOR if self.tokenizer is None else self._load_tokenizer().eos_token_id

    def encode(self, text: str) -> Tensor:
        """Text to `(T,)` token ids, without a separator; uint8 for bytes, int32 otherwise."""
        if self.tokenizer is None:
            return read_bytes(text.encode())
        if callable(self.tokenizer):
            return torch.tensor(self.tokenizer(text), dtype=torch.int32)
        return torch.tensor(self._load_tokenizer().encode(text, add_special_tokens=False), dtype=torch.int32)

    def save_tokenizer(self, folder: Path) -> None:
        """Write a transformers tokenizer's files into a folder; without one, nothing."""
        if isinstance(self.tokenizer, str):
            self._load_tokenizer().save_pretrained(str(folder))

    def bits_per_byte(self, nats_per_token: float, split: str) -> float:
        """Turn the mean cross-entropy of an evaluation split into bits per byte of its text.

        Args:
            nats_per_token: mean over all scored tokens of the split; batches differ in how many they have, so a mean of
                batch means is not it.
            split: "val" or "test".
        """
        self.setup()
        source = self.sources[split]
        if not isinstance(source, EvaluationWindows):
            raise ValueError(f"bits per byte are those of an evaluation split, 'val' or 'test', got {split!r}")
        num_bytes = sum(len(document.encode()) for document in self.documents(split))
        return nats_per_token * source.scored / (num_bytes * math.log(2))

    def build(self) -> dict[str, Source]:
        train = [self.encode(document) for document in self.documents("train")]
        sources: dict[str, Source] = {
            "train": TrainingWindows(train, self.seq_len, self.separator, self.seed, self.windows)
        }
        for split in ("val", "test"):
            documents = [self.encode(document) for document in self.documents(split)]
            if documents:
                sources[split] = EvaluationWindows(documents, self.seq_len, self.separator, self.context)
        return sources

    def _load_tokenizer(self) -> Any:
        if self._pretrained is None:
            try:
                from transformers import AutoTokenizer
            except ImportError as error:
                raise ValueError(
                    f"tokenizer {self.tokenizer!r} needs transformers: install the extra [text]"
                ) from error

            self._pretrained = AutoTokenizer.from_pretrained(self.tokenizer, verbose=False)
        return self._pretrained


class DocumentationDataModule(TextDataModule):
    """Python's documentation as it is installed with Python (`help("topics")`): some 80 documents, 0.5 MB, no download.

    A document that occurs under two names counts once, so that no split holds another one's text. The text, and with it
    the split, differs between versions of Python. Arguments as `TextDataModule`.
    """

    def read(self) -> list[str]:
        from pydoc_data.topics import topics

        return list(dict.fromkeys(topics[name] for name in sorted(topics)))


class SourceCodeDataModule(TextDataModule):
    """The source of Python's standard library as it is installed, a module a document, no download: what a model of
    other text may be tuned to.

    The text, and with it the split, differs between versions of Python. Other arguments as `TextDataModule`.

    Args:
        most: modules, the first by name in the folder of the library; packages and what names begin with "_" left out.
    """

    def __init__(
        self,
        *,
        most: int = 60,
        seq_len: int = 256,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        windows: Literal["strided", "random"] = "strided",
        context: int = 1,
    ) -> None:
        super().__init__(
            seq_len=seq_len, batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers, seed=seed,
            val_fraction=val_fraction, test_fraction=test_fraction, split_seed=split_seed, windows=windows,
            context=context,
        )  # fmt: skip
        if most < 3:
            raise ValueError(f"most must be at least 3, a module a split, got {most}")
        self.most = most

    def read(self) -> list[str]:
        modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
        return [path.read_text(encoding="utf-8") for path in modules[: self.most]]


class TextFilesDataModule(TextDataModule):
    """Any UTF-8 text files, a file a document.

    Fewer than ten files, or files of which a few hold nearly all the text, are each cut at line ends into three blocks
    instead: the beginning trains, the end is the test split, and what lies between them is for validation.

    Args:
        paths: files, folders (with all that is in them, but for hidden files) or patterns (`**` goes through folders);
            the same file counts once. others: see `TextDataModule`.

    Raises:
        FileNotFoundError: a path or pattern that no file fits.
        ValueError: a file that is not UTF-8, and what `TextDataModule` raises.
    """

    def __init__(
        self,
        paths: str | Sequence[str],
        *,
        seq_len: int = 256,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        windows: Literal["strided", "random"] = "strided",
        context: int = 1,
        tokenizer: str | Callable[[str], list[int]] | None = None,
        vocab_size: int | None = None,
        separator: int | None = None,
    ) -> None:
        super().__init__(
            seq_len=seq_len,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            split_seed=split_seed,
            windows=windows,
            context=context,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            separator=separator,
        )
        self.paths = [paths] if isinstance(paths, str) else list(paths)

    def read(self) -> list[str]:
        return [_read_file(path) for path in self._files()]

    def split(self, documents: list[str]) -> dict[str, list[str]]:
        if len(documents) >= FEW:
            with suppress(ValueError):  # where a few of many hold nearly everything they are cut as well
                return super().split(documents)
        splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for text in documents:
            val_start = _line_end(text, round(len(text) * (1 - self.val_fraction - self.test_fraction)))
            test_start = _line_end(text, round(len(text) * (1 - self.test_fraction)))
            blocks = {"train": text[:val_start], "val": text[val_start:test_start], "test": text[test_start:]}
            for name, block in blocks.items():
                splits[name] += [block] if block else []
        wanted = {"train": 1.0, "val": self.val_fraction, "test": self.test_fraction}
        empty = [name for name, blocks in splits.items() if wanted[name] and not blocks]
        if empty:
            raise ValueError(
                f"the text is cut at line ends, and its {sum(len(text.splitlines()) for text in documents)} lines "
                f"leave none for {', '.join(empty)}: give more text, or set its fraction to 0"
            )
        return splits

    def _files(self) -> list[Path]:
        files: set[Path] = set()
        for pattern in self.paths:
            matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
            matches = [Path(match).resolve() for match in matches]
            inside = [] if any(path.is_file() for path in matches) else [f for path in matches for f in _inside(path)]
            found = [path for path in (*matches, *inside) if path.is_file()]
            if not found:
                raise FileNotFoundError(f"no file fits {pattern!r} (looked from {Path.cwd()})")
            files.update(found)
        return sorted(files)


def _inside(folder: Path) -> list[Path]:
    """The files of a folder and those below, hidden ones left out."""
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return [folder / path for path in inside if not any(part.startswith(".") for part in path.parts)]


def _read_file(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"text files must be UTF-8, got {path}: {error}") from error


def _line_end(text: str, position: int) -> int:
    """The end of the last line that ends at or before `position`; where the first line is longer, `position` itself."""
    return text.rfind("\n", 0, position) + 1 or position

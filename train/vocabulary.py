"""A vocabulary of bytes grown by the merges of another text, and a model that reads it from where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from zoo.layers.options import require_at_least

BYTES = 256
Rows = Literal["pieces", "mean", "random"]


@dataclass(frozen=True)
class Merges:
    """Byte-pair encoding over bytes: token 256 + i stands for the two tokens of merge i.

    A byte's id is the byte, so a model of bytes keeps all of its rows. Text is encoded merge by merge, the first first.
    """

    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def learnt(cls, documents: Sequence[str], count: int) -> Merges:
        """Of documents the ``count`` merges of the pair that is the most frequent at each turn, as long as one occurs
        twice; pairs that make a piece anew are left out, so that pieces differ.

        Raises:
            ValueError: for a count below 1.
        """
        require_at_least(1, count=count)
        size, joined = BYTES + count, b"\0".join(document.encode() for document in documents)
        tokens = np.frombuffer(joined, dtype=np.uint8).astype(np.int64)
        pieces, pairs = [bytes([byte]) for byte in range(BYTES)], []
        known, again = set(pieces), np.zeros((size, size), dtype=bool)
        again[0], again[:, 0] = True, True  # no piece reaches over the end of a document
        while len(pairs) < count:
            counts = np.bincount(tokens[:-1] * size + tokens[1:], minlength=size * size).reshape(size, size)
            counts[again] = 0
            left, right = map(int, np.unravel_index(counts.argmax(), counts.shape))
            if counts[left, right] < 2:
                break
            if (piece := pieces[left] + pieces[right]) in known:
                again[left, right] = True
                continue
            pairs.append((left, right))
            pieces.append(piece)
            known.add(piece)
            tokens = _merged(tokens, left, right, BYTES + len(pairs) - 1)
        return cls(tuple(pairs))

    @property
    def vocab_size(self) -> int:
        """Bytes and merges."""
        return BYTES + len(self.pairs)

    @cached_property
    def pieces(self) -> list[bytes]:
        """What the new tokens stand for."""
        made = [bytes([byte]) for byte in range(BYTES)]
        for left, right in self.pairs:
            made.append(made[left] + made[right])
        return made[BYTES:]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        tokens = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        for index, (left, right) in enumerate(self.pairs):
            tokens = _merged(tokens, left, right, BYTES + index)
        return tokens.tolist()

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; what is cut in the middle of a letter becomes a mark."""
        parts = (bytes([token]) if token < BYTES else self.pieces[token - BYTES] for token in tokens)
        return b"".join(parts).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Write the same as ``tokenizer.json``, which `zoo.load_tokenizer` and transformers read."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        letters = _letters()

        def spelled(piece: bytes) -> str:
            return "".join(letters[byte] for byte in piece)

        names = [spelled(bytes([byte])) for byte in range(BYTES)] + [spelled(piece) for piece in self.pieces]
        vocab, merges = {name: index for index, name in enumerate(names)}, [(names[a], names[b]) for a, b in self.pairs]
        tokenizer: Any = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))


def grow_vocabulary(model: Any, pieces: Sequence[bytes], rows: Rows = "pieces") -> None:
    r"""Give a language model of bytes new tokens, in place; the rows of bytes stay to the bit.

    .. math:: E_t = \frac{1}{m} \sum_{j=1}^m E_{p_j}

    for a token that was the m tokens p before, in the embedding and in the head alike.

    Args:
        model: of ``create_model``; its parameters of embedding and head are new.
        pieces: what the new tokens stand for.
        rows: as above ("pieces"), the mean of all rows, or normal numbers of the initial deviation ("random").

    Raises:
        ValueError: for a model of other tokens, or an unknown kind of rows.

    Paper: Vo et al., "RedWhale: An Adapted Korean LLM Through Efficient Continual Pretraining", arXiv 2408.11294.
    """
    if rows not in ("pieces", "mean", "random"):
        raise ValueError(f"rows must be 'pieces', 'mean' or 'random', got {rows!r}")
    if model.config.vocab_size != BYTES:
        raise ValueError(f"a vocabulary of {BYTES} bytes is grown, the model has {model.config.vocab_size} tokens")
    model.resize_token_embeddings(BYTES + len(pieces))
    with torch.no_grad():
        for table in {id(module.weight): module.weight for module in (model.embedding, model.head)}.values():
            if rows == "random":
                nn.init.normal_(table[BYTES:], std=model.config.initializer_range)
            for index, piece in enumerate(pieces if rows == "pieces" else ()):
                table[BYTES + index] = table[list(piece)].mean(0)


def _merged(tokens: np.ndarray, left: int, right: int, new: int) -> np.ndarray:
    """With ``new`` in the place of each pair; of overlapping ones, which are of equal tokens, every other."""
    found = np.flatnonzero((tokens[:-1] == left) & (tokens[1:] == right))
    if left == right and len(found):
        starts = np.flatnonzero(np.diff(found, prepend=-2) > 1)  # of runs
        place = np.arange(len(found)) - np.repeat(starts, np.diff(starts, append=len(found)))
        found = found[place % 2 == 0]
    made = tokens.copy()
    made[found] = new
    return np.delete(made, found + 1)


def _letters() -> list[str]:
    """The letters that byte-level tokenizers write bytes with, GPT-2's: printable ones as they are, others from 256."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(BYTES)]

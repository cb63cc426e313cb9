"""ListOps: the value of a nested expression of lists."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.train.data.loader import Batch
from zoo.train.data.rng import derive_seed
from zoo.train.data.synthetic import SyntheticTask

SYMBOLS = (*map(str, range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")
OPERATORS, END = range(10, 14), 14
PADDING = -1
NESTED = 0.25  # probability that an argument is a list, down to the deepest level


def encode(expression: str) -> list[int]:
    """Tokens of symbols with spaces between them: `"[MAX 2 9 ]"` -> `[11, 2, 9, 14]`.

    Raises:
        ValueError: for a word that is no symbol.
    """
    words = expression.split()
    if unknown := [word for word in words if word not in SYMBOLS]:
        raise ValueError(f"ListOps has the symbols {' '.join(SYMBOLS)}, got {unknown[0]!r}")
    return [SYMBOLS.index(word) for word in words]


def value(operator: int, arguments: list[int]) -> int:
    """Of one list: smallest, largest, median (of an even number the mean of the middle two, cut to an integer), or sum
    modulo 10."""
    ranked = sorted(arguments)
    middle = len(ranked) // 2
    median = ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) // 2
    return (ranked[0], ranked[-1], median, sum(ranked) % 10)[operator - OPERATORS[0]]


@dataclass(frozen=True)
class ListOps(SyntheticTask):
    """Evaluate an expression of nested lists of digits; ten classes, 0 to 9.

    A list is an operator (MIN, MAX, MED, SM: sum modulo 10) and 2 to `max_args` arguments; an argument is a digit or,
    with probability 1/4 above level `max_depth`, a list. Expressions of other lengths than `min_length` to `max_length`
    tokens are drawn again. `generate` gives `(tokens (B, max_length), values (B,))`, int64; tokens past the end are -1:

        [MAX 4 3 [MIN 2 3 ] 1 0 ]   ->   11 4 3 10 2 3 14 1 0 14 -1 -1 ...,   4

    Paper: Nangia and Bowman, "ListOps", arXiv:1804.06028; as in Tay et al., "Long Range Arena", arXiv:2011.04006, whose
    sequences have 500 to 2000 tokens, up to 10 arguments and 10 levels (these defaults).

    Raises:
        ValueError: for lengths that hold no expression, or sizes out of range.
    """

    min_length: int = 500
    max_length: int = 2000
    max_args: int = 10
    max_depth: int = 10
    vocab_size: int = len(SYMBOLS)

    def __post_init__(self) -> None:
        if self.max_args < 2 or self.max_depth < 1 or self.vocab_size != len(SYMBOLS):
            raise ValueError(
                f"max_args must be >= 2, max_depth >= 1 and vocab_size {len(SYMBOLS)}, got max_args={self.max_args}, "
                f"max_depth={self.max_depth}, vocab_size={self.vocab_size}"
            )
        longest = 1
        for _ in range(self.max_depth):
            longest = 2 + self.max_args * longest
        if not 4 <= self.min_length <= min(self.max_length, longest):
            raise ValueError(
                f"min_length must be from 4 to max_length and to the {longest} tokens of the longest expression, got "
                f"min_length={self.min_length}, max_length={self.max_length}"
            )

    @property
    def length(self) -> int:
        return self.max_length

    def generate(self, indices: Tensor, seed: int) -> Batch:
        tokens = torch.full((len(indices), self.max_length), PADDING)
        values = torch.empty(len(indices), dtype=torch.int64)
        for row, index in enumerate(indices.tolist()):
            expression, values[row] = self._expression(random.Random(derive_seed(seed, index)))
            tokens[row, : len(expression)] = torch.tensor(expression)
        return tokens, values

    def _expression(self, source: random.Random) -> tuple[list[int], int]:
        while True:
            tokens: list[int] = []
            result = self._list(source, 1, tokens)
            if self.min_length <= len(tokens) <= self.max_length:
                return tokens, result

    def _list(self, source: random.Random, depth: int, tokens: list[int]) -> int:
        """Append a list to ``tokens`` and return its value; it is given up, unfinished, where it grows too long."""
        operator = OPERATORS[int(source.random() * len(OPERATORS))]
        tokens.append(operator)
        arguments: list[int] = []
        for _ in range(2 + int(source.random() * (self.max_args - 1))):
            if len(tokens) > self.max_length:
                return 0
            if depth < self.max_depth and source.random() < NESTED:
                arguments.append(self._list(source, depth + 1, tokens))
            else:
                arguments.append(int(source.random() * 10))
                tokens.append(arguments[-1])
        tokens.append(END)
        return value(operator, arguments)

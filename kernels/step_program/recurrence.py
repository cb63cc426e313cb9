"""What recurrent layers add to a program: steps of their memories, each with the old state and the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.kernels.step_program.program import CHANNELS, WIDE, Program
from zoo.kernels.step_program.records import Value, bits_of

DECAY, SHIFT, LEAK, ROTATE, RECALL, GATES, BONUS, FEATURES, QUOTIENT, SLSTM = range(14, 24)
MODES = 25
FUNCTIONS = ("softplus", "softplus_of_negative", "sigmoid")  # of DECAY
COLUMNS = 64  # of a chunk of RECALL
ADDED, CORRECTED, TURNED = range(3)  # kinds of RECALL


class Gates(NamedTuple):
    """Of an mLSTM (rows, H): what the memory keeps, how much of the new enters, a factor of what is read."""

    keep: Value
    enter: Value
    read: Value


class Recurrences(Program):
    """The operations of recurrent layers too."""

    def decay(
        self, x: Value, rate: Tensor, change: Callable[[Tensor], Tensor], function: str, bias: Tensor | None = None
    ) -> Value:
        """exp(r f(x + bias)), f one of ``FUNCTIONS``, with rates r (width,) that ``change`` makes of a parameter."""
        x, y = self.whole(x), self.empty(x.width)
        numbers = self.floats(rate, change), self.floats(bias)
        chunks = self.rows * -(-x.width // WIDE)
        self.add(DECAY, chunks, *x.place, *y.place, *numbers, x.width, FUNCTIONS.index(function), WIDE)
        return y

    def shift(self, x: Value, *shares: Tensor) -> tuple[list[Value], int]:
        """x + mu (the x before - x) for each of the shares mu; state, next and brief are arguments 5 to 7."""
        x, y = self.whole(x), self.empty(len(shares) * x.width)
        for share in shares:
            self.watch(share)
        mu = self.pointer(torch.cat([share.detach().float().flatten() for share in shares]))
        number = self.add(SHIFT, self.rows, *x.place, *y.place, mu, 0, 0, 0, x.width, len(shares))
        return y.split(*[x.width] * len(shares)), number

    def leak(self, x: Value, r: Value, i: Value, rate: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Value, int]:
        """Griffin's recurrence with the logits of its gates, and what ``change`` makes of a parameter for the log decay
        at an open gate; state and next are arguments 9 and 10, whether there was an input and will have been one 11
        and 12."""
        y = self.empty(x.width)
        places = *x.place, *r.place, *i.place, *y.place, self.floats(rate, change)
        return y, self.add(LEAK, self.rows, *places, 0, 0, 0, 0, x.width)

    def rotate(self, q: Value, k: Value, head_dim: int, rotary: tuple[Tensor, float, bool]) -> int:
        """Queries and keys turned where they are, by the place of each row; places and next ones are arguments 11 and
        12."""
        heads = q.width // head_dim, k.width // head_dim, head_dim
        return self.add(ROTATE, self.rows, *q.place, *k.place, *self.angles(rotary), *heads, 0, 0)

    def recall(
        self, q: Value, k: Value, v: Value, *, heads: int, scale: float, key_heads: int | None = None,
        decay: Value | None = None, weight: Value | None = None, corrected: bool = False,
        turned: tuple[Value, Value] | None = None, read: Value | None = None,
    ) -> tuple[Value, int]:  # fmt: skip
        """A step of a memory (K, V) a head, as recall.h has it; state and next are arguments 14 and 15.

        Args:
            q, k: (rows, G K).
            v: (rows, H V).
            heads: H.
            scale: of what is read.
            key_heads: G, each of which serves H / G neighbouring heads; H when None.
            decay: factor of the memory, (rows, H) or (rows, H K).
            weight: of the new value (rows, H).
            corrected: what the memory returns for k is taken from v.
            turned: the vectors c (rows, H K) along which the memory is turned, and how much r (rows, H K).
            read: factor of what is read (rows, H).
        """
        y, key_heads = self.empty(v.width), key_heads or heads
        value_dim, each = v.width // heads, int(decay is not None and decay.width != heads)
        kind = TURNED if turned else CORRECTED if corrected else ADDED
        values = q, k, v, decay, weight, *(turned or (None, None))
        places = [place for value in values for place in _place(value)]
        sizes = heads, key_heads, q.width // key_heads, value_dim, each, kind, bits_of(scale), *_place(read)
        chunks = self.rows * heads * -(-value_dim // COLUMNS)
        return y, self.add(RECALL, chunks, *places, 0, 0, *y.place, *sizes)

    def gates(self, q: Value, k: Value, i: Value, f: Value, heads: int, scale: float, eps: float) -> tuple[Gates, int]:
        """Of an mLSTM, of logits i and f (rows, H); the normalizer and the next are arguments 8 and 9, the stabilizer
        and the next 10 and 11."""
        gates = Gates(*(self.empty(heads) for _ in range(3)))
        places = *q.place, *k.place, *i.place, *f.place, 0, 0, 0, 0
        sizes = heads, q.width // heads, bits_of(scale), bits_of(eps)
        made = (gate.place[0] for gate in gates)
        return gates, self.add(GATES, self.rows * heads, *places, *sizes, *made)

    def bonus(self, y: Value, q: Value, k: Value, weight: Tensor, v: Value, heads: int) -> Value:
        """y, whose memory it is, plus (q . w k) v of each head."""
        places = *q.place, *k.place, self.floats(weight), *v.place, *y.place
        self.add(BONUS, self.rows * heads, *places, heads, q.width // heads)
        return y._replace(made=None)

    def features(self, q: Value, k: Value, v: Value, heads: int) -> tuple[Value, Value, Value]:
        """Those of the Taylor attention of q and k (rows, H D), and a 1 behind each value (rows, H (V + 1))."""
        key_dim, value_dim = q.width // heads, v.width // heads
        count = (key_dim + 1) * (key_dim + 2) // 2
        made = self.empty(heads * count), self.empty(heads * count), self.empty(heads * (value_dim + 1))
        places = [place for value in (q, k, v, *made) for place in value.place]
        self.add(FEATURES, self.rows * heads, *places, heads, key_dim, value_dim)
        return made

    def quotient(self, x: Value, heads: int, eps: float) -> Value:
        """What was read of a memory of such values, over the sum of the weights."""
        value_dim = x.width // heads - 1
        y = self.empty(heads * value_dim)
        self.add(QUOTIENT, self.rows * heads, *x.place, *y.place, heads, value_dim, bits_of(eps))
        return y

    def slstm(self, x: Value, R: Tensor) -> tuple[Value, int]:
        """A step of an sLSTM, of gates' logits (rows, 4 H D) and R (H, D, 4, D); cell and next are arguments 5 and
        6."""
        heads, head_dim = R.shape[:2]
        y = self.empty(heads * head_dim)
        return y, self.add(SLSTM, self.rows * heads, *x.place, *y.place, self.floats(R), 0, 0, heads, head_dim)

    def modes(
        self, x: Value, parts: Sequence[Tensor], feedback: Sequence[Tensor], D: Tensor, made_of: Iterable[Tensor]
    ) -> tuple[Value, int]:
        """A step of a linear system a channel; state and next are arguments 10 and 11.

        Args:
            parts: complex a, b and c (dim, N / 2): h' = a h + b x, y = Re(c h') + D x.
            feedback: none, or complex q and v: - q 2 Re(v h) in h'.
            D: of the skip connection, (dim,).
            made_of: the parameters that these were made of.
        """
        for tensor in made_of:
            self.watch(tensor)
        x, y = self.whole(x), self.empty(x.width)
        reals = (torch.view_as_real(t.detach().resolve_conj()).float() for t in (*parts, *feedback))
        numbers = [self.pointer(t.contiguous()) for t in reals]
        places = *x.place, *y.place, *numbers, *[0] * (2 - len(feedback)), self.floats(D)
        chunks = self.rows * -(-x.width // CHANNELS)
        return y, self.add(MODES, chunks, *places, 0, 0, x.width, 2 * parts[0].shape[1])


def _place(value: Value | None) -> tuple[int, int]:
    return (0, 0) if value is None else value.place

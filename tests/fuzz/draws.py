"""Random calls of each operation: what a seed draws is the same on every machine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.kernels.sparse_matmul import compress, row_starts

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 2, 3, 5, 7, 13, 16, 17, 31, 33, 40)
SIZES = (1, 2, 3, 4, 5, 7, 8)


@dataclass
class Draw:
    """A call ``operation(**inputs, **options)``; ``chunked`` says whether it takes a chunk size, ``constant`` which
    inputs have no gradient."""

    inputs: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    chunked: bool = False
    constant: tuple[str, ...] = ("cos", "sin")


class Dice:
    """What the draws of one seed are made with."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        kind = self.random.random()
        self.wide = kind < 0.15
        self.dtypes = (torch.float64,) if self.wide else (self.random.choice(DTYPES),) if kind < 0.8 else DTYPES
        self.batch = self.pick((0, 1, 1, 2, 2, 3))
        self.length = self.pick(LENGTHS)

    def pick(self, values: Sequence[Any]) -> Any:
        return self.random.choice(values)

    def maybe(self, make: Callable, chance: float = 0.5):
        return make() if self.random.random() < chance else None

    def size(self) -> int:
        return self.pick(SIZES)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def values(self, *shape: int) -> Tensor:
        """Of order one, or with zeros, or tiny, or all zero, or large."""
        values = self.normal(*shape)
        kind = self.pick(("plain", "plain", "plain", "zeros", "tiny", "none", "large"))
        if kind == "zeros":
            values = values * (self.rand(*shape) < 0.5)
        return values * {"tiny": 1e-6, "none": 0.0, "large": 30.0}.get(kind, 1.0)

    def mixture(self, usual: Tensor, *extremes: float) -> Tensor:
        """Half of the time as it is, else with one extreme value in many places, a few, or everywhere."""
        share = self.pick((0.0, 0.0, 0.0, 0.05, 0.05, 0.3, 1.0))
        return torch.where(self.rand(*usual.shape) < share, self.pick(extremes), usual)

    def cast(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return values.to(dtype or self.pick(self.dtypes))

    def state(self, *shape: int) -> Tensor:
        """A state of the dtype that the operations keep it in."""
        return self.values(*shape).to(torch.float64 if self.wide else torch.float32)

    def sequences(self, *shape: int) -> Tensor:
        """Numbers of packed sequences, negative ones and such as come again included."""
        changes = self.rand(*shape) < self.pick((0.05, 0.3, 1.0))
        number = torch.randint(-2, 3, shape, generator=self.generator)
        last = (changes * torch.arange(shape[-1])).cummax(-1).values if shape[0] else torch.zeros(shape).long()
        return number.gather(-1, last)


def present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _rates(dice: Dice, *shape: int) -> Tensor:
    return dice.cast(dice.mixture(-16 * dice.rand(*shape), 0.0, -1e-3, -1e3, -math.inf), dice.pick(dice.dtypes))


def _steps(dice: Dice, *shape: int) -> Tensor:
    largest = 6e4 if torch.float16 in dice.dtypes else 1e15
    return dice.mixture(0.5 * dice.rand(*shape) + 1e-3, 1e-6, 50.0, 1e4, largest)


def selective_scan(dice: Dice) -> Draw:
    groups, dim, state = dice.pick((1, 1, 2)), dice.size(), dice.size()
    dim, time = dim * groups, (dice.batch, dice.length)
    return Draw(
        present(
            x=dice.cast(dice.values(*time, dim)),
            dt=dice.cast(_steps(dice, *time, dim)),
            A=_rates(dice, dim, state),
            B=dice.cast(dice.values(*time, groups, state)),
            C=dice.cast(dice.values(*time, groups, state)),
            D=dice.maybe(lambda: dice.cast(dice.values(dim))),
            z=dice.maybe(lambda: dice.cast(dice.values(*time, dim))),
            dt_bias=dice.maybe(lambda: dice.cast(dice.rand(dim))),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, dim, state)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"dt_softplus": dice.pick((False, True))},
    )


def ssd(dice: Dice) -> Draw:
    groups, heads, head_dim, state = dice.pick((1, 1, 2)), dice.pick((1, 2, 3)), dice.size(), dice.size()
    heads, time = heads * groups, (dice.batch, dice.length)
    return Draw(
        present(
            x=dice.cast(dice.values(*time, heads, head_dim)),
            dt=dice.cast(_steps(dice, *time, heads)),
            A=_rates(dice, heads),
            B=dice.cast(dice.values(*time, groups, state)),
            C=dice.cast(dice.values(*time, groups, state)),
            D=dice.maybe(lambda: dice.cast(dice.values(*dice.pick(((heads,), (heads, head_dim)))))),
            dt_bias=dice.maybe(lambda: dice.cast(dice.rand(heads))),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, heads, head_dim, state)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {
            "dt_softplus": dice.pick((False, True)),
            "dt_limit": dice.pick(((0.0, math.inf), (0.0, math.inf), (0.1, 0.4))),
        },
        chunked=True,
    )


def _log_decays(dice: Dice, *shape: int) -> Tensor:
    return dice.cast(dice.mixture(-dice.rand(*shape), 0.0, -50.0, -1e4, -math.inf))


def linear_attention(dice: Dice) -> Draw:
    heads, keys, values, time = dice.pick((1, 2, 3)), dice.size(), dice.size(), (dice.batch, dice.length)
    gate = dice.pick((None, (heads,), (heads, keys)))
    return Draw(
        present(
            q=dice.cast(dice.values(*time, heads, keys)),
            k=dice.cast(dice.values(*time, heads, keys)),
            v=dice.cast(dice.values(*time, heads, values)),
            log_decay=None if gate is None else _log_decays(dice, *time, *gate),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, heads, keys, values)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"scale": dice.pick((None, 0.3))},
        chunked=True,
    )


def mlstm(dice: Dice) -> Draw:
    """Gates whose exponentials float32 holds, and never two that are equally large."""
    heads, keys, values, time = dice.pick((1, 2, 3)), dice.size(), dice.size(), (dice.batch, dice.length)
    decay = dice.pick((-1.0, -1.0, 1.0)) * dice.rand(*time, heads) - 1e-3
    made = Draw(
        present(
            q=dice.cast(dice.values(*time, heads, keys)),
            k=dice.cast(dice.values(*time, heads, keys)),
            v=dice.cast(dice.values(*time, heads, values)),
            log_input=dice.cast(dice.mixture(dice.pick((1.0, 5.0)) * dice.normal(*time, heads), -20.0, -math.inf)),
            log_decay=dice.cast(dice.mixture(decay, -30.0, -math.inf)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"scale": dice.pick((None, 0.3)), "eps": dice.pick((1e-6, 1e-2))},
        chunked=True,
    )
    if dice.random.random() < 0.5:
        shape = dice.batch, heads, keys
        made.inputs["memory"], made.inputs["normalizer"] = dice.state(*shape, values), dice.state(*shape)
        made.inputs["stabilizer"] = dice.normal(*shape[:2]).to(made.inputs["memory"].dtype)
    return made


def slstm(dice: Dice) -> Draw:
    heads, dim, time = dice.pick((1, 2, 3)), dice.size(), (dice.batch, dice.length)
    x = dice.pick((0.3, 1.0, 5.0)) * dice.normal(*time, 4, heads, dim)
    made = present(
        x=dice.cast(x),
        R=dice.cast(dice.pick((0.0, 0.3)) * dice.normal(heads, dim, 4, dim)),
        seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
    )
    if dice.random.random() < 0.5:
        state = dice.normal(dice.batch, 4, heads, dim)
        state[:, 2] = 0.5 + dice.rand(dice.batch, heads, dim)  # a normaliser is positive
        made["initial_state"] = state.to(torch.float64 if dice.wide else torch.float32)
    return Draw(made)


def leaky_memory(dice: Dice) -> Draw:
    dim, hidden, time = dice.size(), dice.size(), (dice.batch, dice.length)
    return Draw(
        present(
            x=dice.cast(dice.values(*time, hidden)),
            W_in=dice.cast(dice.pick((0.0, 0.3, 1.0)) * dice.normal(dim, hidden)),
            W_out=dice.cast(0.5 * dice.normal(hidden, dim)),
            bias=dice.cast(0.3 * dice.normal(dim)),
            decay=dice.cast(dice.pick((0.0, 0.5, 1.0)) * dice.rand(dim)),
            gain=dice.cast(dice.rand(dim)),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, dim)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"activation": dice.pick(("relu", "silu"))},
    )


def linear_recurrence(dice: Dice) -> Draw:
    dim, time = dice.size(), (dice.batch, dice.length)
    return Draw(
        present(
            x=dice.cast(dice.values(*time, dim)),
            log_decay=_log_decays(dice, *time, dim),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, dim)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        )
    )


def delta_rule(dice: Dice) -> Draw:
    """Keys of norm 1 and beta up to 2, where the state stays bounded."""
    heads, keys, values, time = dice.pick((1, 2, 3)), dice.size(), dice.size(), (dice.batch, dice.length)
    gate = dice.pick((None, (heads,), (heads, keys)))
    k = torch.nn.functional.normalize(dice.normal(*time, heads, keys), dim=-1)
    return Draw(
        present(
            q=dice.cast(dice.values(*time, heads, keys)),
            k=dice.cast(0.99 * k),
            v=dice.cast(dice.values(*time, heads, values)),
            beta=dice.cast(dice.mixture(dice.rand(*time, heads), 0.0, 1.0, 2.0)),
            log_decay=None if gate is None else _log_decays(dice, *time, *gate),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, heads, keys, values)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"scale": dice.pick((None, 0.3))},
        chunked=True,
    )


def generalized_delta_rule(dice: Dice) -> Draw:
    """As RWKV-7 makes them, where the state stays bounded: a of norm 1, b a part of -a, decays of at most 1."""
    heads, keys, values, time = dice.pick((1, 2, 3)), dice.size(), dice.size(), (dice.batch, dice.length)
    a = 0.99 * torch.nn.functional.normalize(dice.normal(*time, heads, keys), dim=-1)
    rate = dice.mixture(dice.rand(*time, heads, 1), 0.0, 1.0)
    return Draw(
        present(
            q=dice.cast(dice.values(*time, heads, keys)),
            k=dice.cast(dice.values(*time, heads, keys)),
            v=dice.cast(dice.values(*time, heads, values)),
            a=dice.cast(a),
            b=dice.cast(-rate * a),
            log_decay=_log_decays(dice, *time, heads, keys),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, heads, keys, values)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"scale": dice.pick((None, 0.3))},
        chunked=True,
    )


def momentum_delta_rule(dice: Dice) -> Draw:
    """Keys of norm 1 and rates up to 1, where memory and momentum stay bounded."""
    heads, keys, values, time = dice.pick((1, 2, 3)), dice.size(), dice.size(), (dice.batch, dice.length)
    k = torch.nn.functional.normalize(dice.normal(*time, heads, keys), dim=-1)
    return Draw(
        present(
            q=dice.cast(dice.values(*time, heads, keys)),
            k=dice.cast(0.99 * k),
            v=dice.cast(dice.values(*time, heads, values)),
            rate=dice.cast(dice.mixture(dice.rand(*time, heads), 0.0, 1.0)),
            log_decay=_log_decays(dice, *time, heads),
            log_momentum=_log_decays(dice, *time, heads),
            initial_state=dice.maybe(lambda: dice.state(dice.batch, heads, keys, values)),
            initial_momentum=dice.maybe(lambda: dice.state(dice.batch, heads, keys, values)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"scale": dice.pick((None, 0.3))},
        chunked=True,
    )


def taylor_attention(dice: Dice) -> Draw:
    heads, keys, values, time = dice.pick((1, 2)), dice.pick((1, 2, 3, 5)), dice.size(), (dice.batch, dice.length)
    return Draw(
        present(
            q=dice.cast(dice.normal(*time, heads, keys)),
            k=dice.cast(dice.normal(*time, heads, keys)),
            v=dice.cast(dice.values(*time, heads, values)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"normalize": dice.pick((True, False))},
        chunked=True,
    )


def causal_conv1d(dice: Dice) -> Draw:
    dim, width, time = dice.size(), dice.pick((2, 3, 4, 5)), (dice.batch, dice.length)
    x = dice.cast(dice.values(*time, dim))
    return Draw(
        present(
            x=x,
            weight=dice.cast(dice.values(dim, width)),
            bias=dice.maybe(lambda: dice.cast(dice.values(dim))),
            initial_state=dice.maybe(lambda: dice.cast(dice.values(dice.batch, width - 1, dim), x.dtype)),
            seq_idx=dice.maybe(lambda: dice.sequences(*time), 0.4),
        ),
        {"activation": dice.pick((None, "silu"))},
    )


def long_conv(dice: Dice) -> Draw:
    dim, time, circular = dice.size(), (dice.batch, dice.length), dice.pick((True, False))
    taps = dice.pick([t for t in (*LENGTHS, dice.length) if t <= dice.length or not circular])
    return Draw(
        present(
            u=dice.cast(dice.values(*time, dim)),
            kernel=dice.cast(dice.values(dim, taps)),
            D=dice.maybe(lambda: dice.cast(dice.values(dim))),
            gate=dice.maybe(lambda: dice.cast(dice.values(*time, dim))),
        ),
        {"circular": circular},
    )


def rms_norm(dice: Dice) -> Draw:
    """All of one dtype: the normalised values are rounded to that of the weight. The gradient of a group of one value
    would be a difference of equal numbers."""
    dice.dtypes = (dice.pick(dice.dtypes),)
    groups = dice.pick((1, 1, 2, 3))
    shape = dice.pick([(dice.batch, dice.length), (dice.batch,), ()])
    dim = dice.pick((2, 3, 5, 8)) * groups
    return Draw(
        present(
            x=dice.cast(dice.values(*shape, dim)),
            weight=dice.maybe(lambda: dice.cast(dice.values(dim))),
            z=dice.maybe(lambda: dice.cast(dice.values(*shape, dim))),
        ),
        {"num_groups": groups, "norm_before_gate": dice.pick((True, False)), "eps": dice.pick((1e-5, 1e-6))},
    )


def rope(dice: Dice) -> Draw:
    heads, pairs, rest = dice.pick((1, 2, 3)), dice.size(), dice.pick((0, 0, 1, 3))
    angle = 10 * dice.normal(*dice.pick([(dice.length,), (dice.batch, dice.length)]), pairs)
    dtype = dice.pick(dice.dtypes)
    return Draw(
        {
            "x": dice.cast(dice.values(dice.batch, dice.length, heads, 2 * pairs + rest)),
            "cos": dice.cast(angle.cos(), dtype),
            "sin": dice.cast(angle.sin(), dtype),
        },
        {"interleaved": dice.pick((True, False))},
    )


def _attention(dice: Dice, keys: int) -> dict[str, Tensor]:
    groups, dim, values = dice.pick((1, 2)), dice.size(), dice.size()
    heads = groups * dice.pick((1, 2))
    return {
        "q": dice.cast(dice.values(dice.batch, dice.length, heads, dim)),
        "k": dice.cast(dice.values(dice.batch, keys, groups, dim)),
        "v": dice.cast(dice.values(dice.batch, keys, groups, values)),
    }


def sliding_window_attention(dice: Dice) -> Draw:
    keys = dice.length + dice.pick((0, 0, 1, 7))
    inputs = _attention(dice, keys)
    sinks = dice.pick((0, 0, 1, 3))
    if sinks == 0 and dice.random.random() < 0.4:
        inputs["seq_idx"] = dice.sequences(dice.batch, keys)
    return Draw(inputs, {"window": dice.pick((1, 2, 5, 16, 100)), "sinks": sinks, "scale": dice.pick((None, 0.3))})


def block_sparse_attention(dice: Dice) -> Draw:
    keys, size = dice.length + dice.pick((0, 0, 1, 7)), dice.pick((1, 3, 16))
    inputs = _attention(dice, keys)
    shape = dice.pick((1, dice.batch)), dice.pick((1, inputs["q"].shape[2])), -(-dice.length // size), -(-keys // size)
    inputs["block_mask"] = dice.rand(*shape) < dice.pick((0.0, 0.5, 1.0))
    return Draw(inputs, {"block_size": size, "causal": dice.pick((True, False)), "scale": dice.pick((None, 0.3))})


def linear_cross_entropy(dice: Dice) -> Draw:
    rows, dim, words = dice.batch * dice.length, dice.size(), dice.pick((2, 7, 35))
    labels = torch.randint(0, words, (rows,), generator=dice.generator)
    labels[dice.rand(rows) < dice.pick((0.0, 0.3, 1.0))] = -100
    return Draw(
        present(
            hidden=dice.cast(dice.normal(rows, dim)),
            weight=dice.cast(dice.values(words, dim)),
            bias=dice.maybe(lambda: dice.cast(dice.values(words))),
            labels=labels,
        ),
        {
            "z_loss": dice.pick((0.0, 0.1)),
            "softcap": dice.pick((None, 3.0)),
            "label_smoothing": dice.pick((0.0, 0.1)),
        },
        chunked=True,
    )


def grouped_matmul(dice: Dice) -> Draw:
    rows, experts = dice.batch * dice.length, dice.pick((1, 2, 5))
    ends = torch.randint(0, rows + 1, (experts,), generator=dice.generator).sort().values
    dim, width = dice.size(), dice.size()
    return Draw(
        present(
            x=dice.cast(dice.values(rows, dim)),
            weight=dice.cast(dice.values(experts, dim, width)),
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
            bias=dice.maybe(lambda: dice.cast(dice.values(experts, width))),
        )
    )


def hashed_lookup(dice: Dice) -> Draw:
    count, bits, dim = dice.size(), dice.pick((1, 2, 3, 5)), dice.pick((1, 3, 8, 64, 70, 130))
    shape = dice.pick([(dice.batch, dice.length), (dice.batch,), ()])
    return Draw(
        {
            "x": dice.cast(dice.values(*shape, count * bits)),
            "tables": dice.cast(dice.values(count, 2**bits, dim)),
        },
        {"temperature": dice.pick((1.0, 0.3, 2.0)), "scaled": dice.pick((True, False))},
    )


def deformable_attention_3d(dice: Dice) -> Draw:
    """Points well inside a cell, or outside the volume: their gradient leaps where cells meet."""
    heads, points, dim, bins = dice.pick((1, 2, 3)), dice.pick((1, 2, 3)), dice.pick((1, 2, 5, 70)), dice.size()
    sizes, shape = (dice.size(), dice.size()), (dice.batch, dice.pick((1, 2, 3, 5)), heads, points)
    places = [
        (torch.randint(-2, size + 2, shape, generator=dice.generator) + 0.7 + 0.6 * dice.rand(*shape)) / size
        for size in (*sizes, bins)
    ]
    return Draw(
        {
            "value": dice.cast(dice.values(dice.batch, sizes[1], sizes[0], heads, dim)),
            "depth": dice.cast(dice.values(dice.batch, sizes[1], sizes[0], bins)),
            "locations": dice.cast(torch.stack(places, -1)),
            "weights": dice.cast(dice.values(*shape)),
        }
    )


def lowbit_matmul(dice: Dice) -> Draw:
    """Groups of any size, in rows that are a block of codes or two and a rest, or less than one."""
    bits, groups = dice.pick(range(1, 9)), dice.pick((1, 2, 3))
    columns, rows = groups * dice.pick((1, 7, 16, 32, 48, 100)), dice.size()
    integers = partial(torch.randint, 0, dtype=torch.uint8, generator=dice.generator)
    return Draw(
        present(
            x=dice.cast(dice.values(dice.batch, dice.length, columns)),
            codes=integers(256, (rows, -(-columns // 8) * bits)),
            scale=dice.cast(dice.values(rows, groups)),
            zero=dice.maybe(lambda: integers(2**bits, (rows, groups))),
            bias=dice.maybe(lambda: dice.cast(dice.values(rows))),
        ),
        {"bits": bits},
    )


def integer_products(dice: Dice) -> Draw:
    """Activations of a few bits or eight, in groups that are whole vectors or not; nothing is differentiable."""
    bits, groups, rows = dice.pick(range(1, 9)), dice.pick((1, 2, 3)), dice.size()
    columns = groups * dice.pick((1, 7, 16, 32, 64, 100))
    integers = partial(torch.randint, generator=dice.generator)
    least = dice.pick((-128, -8, 0))
    return Draw(
        present(
            v=integers(least, 8 if least else 128, (dice.batch * dice.length, columns), dtype=torch.int16),
            step=dice.rand(dice.batch * dice.length, 1).float(),
            codes=integers(256, (rows, -(-columns // 8) * bits), dtype=torch.uint8),
            scale=dice.values(rows, groups).to(dice.pick((torch.float32, torch.bfloat16))),
            zero=dice.maybe(lambda: integers(2**bits, (rows, groups), dtype=torch.uint8)),
        ),
        {"bits": bits},
        constant=("step", "scale"),
    )


def sparse_matmul(dice: Dice) -> Draw:
    """Any share of the places, in rows of equal or of their own lengths, whole bytes or not."""
    columns, rows = dice.pick((1, 7, 16, 40, 65)), dice.size()
    order = torch.rand(rows, columns, generator=dice.generator)
    even = dice.pick((True, False))
    kept = order.argsort(1) < dice.pick((0, 1, columns // 2, columns)) if even else order < dice.pick((0.0, 0.3, 1.0))
    mask, values = compress(dice.values(rows, columns), kept)
    return Draw(
        present(
            x=dice.cast(dice.values(dice.batch, dice.length, columns)),
            values=dice.cast(values),
            mask=mask,
            start=None if even else row_starts(mask, columns),
            bias=dice.maybe(lambda: dice.cast(dice.values(rows))),
        ),
        {},
    )


DRAWS: dict[str, Callable[[Dice], Draw]] = {
    function.__name__: function
    for function in (
        block_sparse_attention,
        causal_conv1d,
        deformable_attention_3d,
        delta_rule,
        generalized_delta_rule,
        grouped_matmul,
        hashed_lookup,
        integer_products,
        leaky_memory,
        linear_attention,
        linear_cross_entropy,
        linear_recurrence,
        long_conv,
        lowbit_matmul,
        mlstm,
        momentum_delta_rule,
        rms_norm,
        rope,
        selective_scan,
        sliding_window_attention,
        slstm,
        sparse_matmul,
        ssd,
        taylor_attention,
    )
}


def restrided(dice: Dice, tensor: Tensor) -> Tensor:
    """Values of the same shape, laid out otherwise: transposed, a slice of more, behind an offset, or expanded."""
    kind = dice.pick(("plain", "plain", "transposed", "sliced", "offset", "expanded"))
    if tensor.dim() == 0 or kind == "plain":
        return tensor
    a, b = dice.random.randrange(tensor.dim()), dice.random.randrange(tensor.dim())
    filler = torch.full_like(tensor, math.nan) if tensor.is_floating_point() else torch.zeros_like(tensor)
    if kind == "transposed":
        return tensor.transpose(a, b).contiguous().transpose(a, b)
    if kind == "sliced":
        return torch.stack([tensor, filler], a + 1).flatten(a, a + 1)[(*[slice(None)] * a, slice(None, None, 2))]
    if kind == "offset":
        return torch.cat([filler, tensor], a).narrow(a, tensor.shape[a], tensor.shape[a])
    return tensor.narrow(a, 0, 1).expand_as(tensor) if tensor.shape[a] else tensor

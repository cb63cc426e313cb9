"""Factors between layers that leave a model's outputs as they are, tied where they must be.

.. math::
    W_2 f(W_1 x) = (W_2 \\, \\mathrm{diag}(c)) \\, f(\\mathrm{diag}(1 / c) \\, W_1 x)

between a norm and what reads it, values and the output of attention, queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoo.layers import CausalAttention
from zoo.quantize.calibration import Calibration
from zoo.quantize.folds import TOLERANCE, folds

AROUND = ("q_proj", "k_proj", "v_proj", "out_proj")


class Part(NamedTuple):
    """A parameter that an equivalence multiplies along an axis, by c (``power`` 1) or by 1 / c (-1), of which its
    channel j takes the number ``place[j]``."""

    name: str
    axis: int
    power: int
    place: Tensor


class Equivalence(NamedTuple):
    """So many free factors c, and the parameters that they multiply."""

    size: int
    parts: tuple[Part, ...]

    def scaled(self, weights: Mapping[str, Tensor], c: Tensor) -> dict[str, Tensor]:
        """The parameters of ``weights`` that take part, multiplied, by name; with gradients of c (size,)."""
        found = {}
        for part in self.parts:
            weight = found.get(part.name, weights[part.name])
            factor = c[part.place] if part.power > 0 else 1 / c[part.place]
            shape = [-1 if axis == part.axis else 1 for axis in range(weight.dim())]
            found[part.name] = weight * factor.to(weight).view(shape)
        return found

    @torch.no_grad()
    def apply(self, model: nn.Module, c: Tensor) -> None:
        """Multiply the parameters in place."""
        for name, weight in self.scaled({part.name: model.get_parameter(part.name) for part in self.parts}, c).items():
            model.get_parameter(name).data = weight

    def inside(self, block: str) -> bool:
        """Whether all of it lies in that module."""
        return all(part.name.startswith(f"{block}.") for part in self.parts)


def equivalences(
    model: nn.Module, linears: Iterable[str], calibration: Calibration, *, queries: bool = True
) -> list[Equivalence]:
    """Those of a model: from norms, see ``folds``, and of attention's values and, where asked for, its queries; kept
    where they leave the outputs as they are.

    Args:
        model: in eval mode; left as it was.
        linears: names of the linear layers whose inputs may be scaled.
        calibration: of which the first batch is run.
        queries: also between queries and keys.
    """
    linears = list(linears)
    found = []
    for fold in folds(model, linears, calibration):
        channels = torch.arange(model.get_parameter(f"{fold.norm}.weight").shape[0])
        scaled = [Part(f"{name}.weight", 1, 1, channels) for name in fold.linears]
        found.append(Equivalence(len(channels), (*_rows(model, fold.norm, -1, channels), *scaled)))
    for name, module in model.named_modules():
        plain = isinstance(module, CausalAttention) and all(type(getattr(module, a, None)) is nn.Linear for a in AROUND)
        if plain and f"{name}.out_proj" in linears:
            found += _kept(
                model, [of_values(model, name), *([of_queries(model, name)] if queries else [])], calibration
            )
    return found


def of_values(model: nn.Module, attention: str) -> Equivalence:
    """Values divided, the output's columns multiplied: a factor a channel of a value head, which its queries share."""
    module: Any = model.get_submodule(attention)
    channels = torch.arange(module.num_kv_heads * module.head_dim)
    read = Part(f"{attention}.out_proj.weight", 1, 1, _repeated(channels, module))
    return Equivalence(len(channels), (*_rows(model, f"{attention}.v_proj", -1, channels), read))


def of_queries(model: nn.Module, attention: str) -> Equivalence:
    """Queries divided, keys multiplied: a factor a pair of channels that turn together, shared by a group's queries."""
    module: Any = model.get_submodule(attention)
    pair, rotary = torch.arange(module.head_dim), module.rotary
    if rotary is not None:
        turned = pair[: rotary.dim]
        pair = torch.cat([turned // 2 if rotary.interleaved else turned % (rotary.dim // 2), pair[rotary.dim :]])
    heads = torch.arange(module.num_kv_heads)[:, None] * module.head_dim + pair
    place = heads.flatten().unique(return_inverse=True)[1]
    queries = _rows(model, f"{attention}.q_proj", -1, _repeated(place, module))
    return Equivalence(int(place.max()) + 1, (*queries, *_rows(model, f"{attention}.k_proj", 1, place)))


def _repeated(place: Tensor, attention: Any) -> Tensor:
    """Of key and value heads, for each query head."""
    shared = attention.num_heads // attention.num_kv_heads
    return place.view(-1, attention.head_dim).repeat_interleave(shared, 0).flatten()


def _rows(model: nn.Module, name: str, power: int, place: Tensor) -> list[Part]:
    """What a norm or a linear layer gives: its weight along the first axis, and its bias."""
    own = dict(model.get_submodule(name).named_parameters(recurse=False))
    return [Part(f"{name}.{key}", 0, power, place) for key in ("weight", "bias") if key in own]


@torch.no_grad()
def _kept(model: nn.Module, found: list[Equivalence], calibration: Calibration) -> list[Equivalence]:
    """Those that hold when every other factor is 2 and the rest are 1/2."""
    first = Calibration(calibration.batches[:1])
    expected = next(first.outputs(model)).clone()
    kept = []
    for one in found:
        before = {part.name: model.get_parameter(part.name).data for part in one.parts}
        one.apply(model, torch.where(torch.arange(one.size) % 2 == 0, 2.0, 0.5))
        changed = (next(first.outputs(model)) - expected).norm()
        for name, data in before.items():
            model.get_parameter(name).data = data
        kept += [one] if changed <= TOLERANCE * expected.norm() else []
    return kept

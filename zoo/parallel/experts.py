"""Experts that processes share out: each has some, and tokens are there already or are sent."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.kernels.moe import MoEOutput, Routing
from zoo.layers.moe.experts import RoutedExperts
from zoo.parallel.collectives import Group, all_to_all, copied, exchanged, summed


def at_home(
    group: Group, layer: RoutedExperts, tokens: Tensor, routing: Routing, kept: Tensor | None = None,
    capacity: int | None = None,
) -> MoEOutput:  # fmt: skip
    """``visit`` where every process has all tokens: each computes its experts', and the outputs are added up."""
    each = layer.num_experts // group.size()
    first = group.rank() * each
    experts = _kept(routing.experts, kept, layer.num_experts)
    own = (experts >= first) & (experts < first + each)
    part = routing._replace(weights=copied(routing.weights, group), experts=(experts - first).where(own, each))
    output, dropped = layer._visit(copied(tokens, group), part, capacity)
    if capacity is not None:
        dropped = dropped.clone()
        dist.all_reduce(dropped, group=group)
    return MoEOutput(summed(output, group), dropped)


def sent(
    group: Group, nodes: tuple[Group, Group] | None, layer: RoutedExperts, tokens: Tensor, routing: Routing,
    kept: Tensor | None = None, capacity: int | None = None,
) -> MoEOutput:  # fmt: skip
    """``visit`` where every process has tokens of its own, which are sent to the processes of their experts and back.

    Args:
        nodes: the processes of the same node and those of the same place in all nodes: tokens go to the place within
            the node first, then to the node (SE-MoE, arXiv 2205.10034); None for all at once.
    """
    if capacity is not None:
        raise ValueError("a capacity counts the tokens of all processes: set capacity_factor=None to send tokens")
    each = layer.num_experts // group.size()
    chosen = _kept(routing.experts, kept, layer.num_experts).flatten()
    number = (chosen < layer.num_experts).nonzero()[:, 0]  # of assignments to an expert
    token, chosen = number // layer.top_k, chosen[number]
    way = (
        _there(tokens[token], chosen, each, group) if nodes is None else _by_nodes(tokens[token], chosen, each, *nodes)
    )
    one = way.rows.new_ones(len(way.rows), 1)
    back = way.back(layer._visit(way.rows, Routing(one, (way.experts % each)[:, None], one), None).output)
    weights = routing.weights.flatten()[number, None]
    wide = torch.promote_types(back.dtype, weights.dtype)
    output = torch.zeros(tokens.shape, dtype=wide, device=tokens.device)
    output = output.index_add(0, token, back.to(wide) * weights.to(wide))
    return MoEOutput(output.to(tokens.dtype), chosen.new_zeros(()))


class _Way:
    """Rows that have gone to the processes of their experts, and how they come back.

    Attributes:
        rows: those that came here, of any process.
        experts: their numbers.
    """

    def __init__(self, rows: Tensor, experts: Tensor, to: Tensor, group: Group):
        self.group, self.order = group, to.argsort(stable=True)
        counts = torch.bincount(to, minlength=group.size())
        comes = torch.empty_like(counts)
        dist.all_to_all_single(comes, counts, group=group)
        self.sends, self.receives = counts.tolist(), comes.tolist()
        self.rows = exchanged(rows[self.order], group, self.sends, self.receives)
        self.experts = all_to_all(experts[self.order], group, self.sends, self.receives)

    def back(self, rows: Tensor) -> Tensor:
        """What was made of ``rows``, to where they came from, in the order that they had there."""
        return exchanged(rows, self.group, self.receives, self.sends)[self.order.argsort()]


class _Two(_Way):
    """One way after another."""

    def __init__(self, first: _Way, second: _Way):
        self.first, self.second, self.rows, self.experts = first, second, second.rows, second.experts

    def back(self, rows: Tensor) -> Tensor:
        """See ``_Way``."""
        return self.first.back(self.second.back(rows))


def _there(rows: Tensor, experts: Tensor, each: int, group: Group) -> _Way:
    return _Way(rows, experts, experts // each, group)


def _by_nodes(rows: Tensor, experts: Tensor, each: int, within: Group, across: Group) -> _Way:
    """To the place in the own node that the expert's process has in its node, from there to that node."""
    first = _Way(rows, experts, experts // each % within.size(), within)
    return _Two(first, _Way(first.rows, first.experts, first.experts // each // within.size(), across))


def _kept(experts: Tensor, kept: Tensor | None, nobody: int) -> Tensor:
    return experts if kept is None else experts.masked_fill(~kept[:, None], nobody)

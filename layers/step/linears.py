"""Linear layers and norms of one token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.kernels.step_program import Matrix, Value, dense, integers, kept, minifloats, sparse
from zoo.layers.linear import BlockLinear, WideBias, WideLinear
from zoo.layers.norm import HeadNorm, JointRMSNorm, LayerNorm, OffsetRMSNorm, PlainRMSNorm, RMSNorm
from zoo.layers.quant.layers import Linear
from zoo.layers.quant.layouts.minifloat import MINIFLOATS
from zoo.layers.quant.record import Record
from zoo.layers.sparse.linear import SparseLinear
from zoo.layers.sparse.matrix import SparseMatrix
from zoo.layers.sparse.rank_aware import RankAwareLinear
from zoo.layers.step.writer import Undescribed, Writer, describes


@describes(nn.Identity)
def _identity(p: Writer, module: nn.Identity, x: Value) -> Value:
    return x


@describes(nn.Linear, WideBias, WideLinear, Linear, SparseLinear)
def _linear(p: Writer, module: nn.Linear | Linear | SparseLinear, x: Value) -> Value:
    return p.linear(x, matrix(p, module.weight), module.bias)


def matrix(p: Writer, weight: object) -> Matrix:
    """Of a parameter or a record: one matrix, or one for each expert."""
    if isinstance(weight, Tensor):
        return dense(p, weight)
    if isinstance(weight, SparseMatrix):
        p.visit(weight)
        return sparse(p, tuple(weight.shape), weight.values, weight.mask, weight.start)
    if not isinstance(weight, Record):
        raise Undescribed(f"a matrix in a {type(weight).__name__}")
    p.visit(weight)
    form, shape = weight.format, tuple(weight.shape)
    plain, rounded = form.is_plain, form.activation_bits or 0
    if plain and form.layout == "int":
        found = integers(p, shape, weight.codes, weight.scale, weight.zero, form.bits)
        return found._replace(rounded=rounded)
    if plain and not rounded and form.layout in MINIFLOATS:
        return minifloats(p, shape, weight.codes, weight.scale, MINIFLOATS[form.layout].kind)
    raise Undescribed(f"a record of {form}")


@describes(BlockLinear)
def _block_linear(p: Writer, module: BlockLinear, x: Value) -> Value:
    x = p.whole(x) if x.place[1] == x.width else p.scaled(x)
    return p.linear_of(x, dense(p, module.weight), module.bias, p.every(len(module.weight)))


@describes(nn.Sequential)
def sequential_step(p: Writer, module: nn.Sequential, x: Value) -> Value:
    """One after another."""
    for part in module:
        x = p.call(part, x)
    return x


@describes(nn.Sigmoid)
def _sigmoid(p: Writer, module: nn.Sigmoid, x: Value) -> Value:
    return p.glu(x, None, "sigmoid")


@describes(nn.Tanh)
def _tanh(p: Writer, module: nn.Tanh, x: Value) -> Value:
    return p.capped(x, 1.0)


@describes(RankAwareLinear)
def _rank_aware(p: Writer, module: RankAwareLinear, x: Value) -> Value:
    held = module.weight
    if held.columns.dtype != torch.float32:
        raise Undescribed(f"columns of {held.columns.dtype}")
    p.visit(held)
    p.reporting.append(held)
    p.watch(held.threshold)
    columns = kept(p, held.columns, held.norm, held.threshold.item(), held.right, held.left)
    return p.linear(p.whole(x), columns, module.bias)


@describes(RMSNorm, JointRMSNorm)
def _norm(p: Writer, module: RMSNorm, x: Value) -> Value:
    return p.norm(x, module.weight, module.eps, heads=x.width // len(module.weight))


@describes(OffsetRMSNorm)
def _offset_norm(p: Writer, module: OffsetRMSNorm, x: Value) -> Value:
    return p.norm(x, module.weight, module.eps, heads=x.width // len(module.weight), change=lambda weight: 1 + weight)


@describes(PlainRMSNorm)
def _plain_norm(p: Writer, module: PlainRMSNorm, x: Value) -> Value:
    return p.norm(x, None, module.eps)


@describes(LayerNorm)
def _layer_norm(p: Writer, module: LayerNorm, x: Value) -> Value:
    return p.norm(x, module.weight, module.eps, bias=module.bias, centred=True)


@describes(HeadNorm)
def _head_norm(p: Writer, module: HeadNorm, x: Value) -> Value:
    return p.norm(x, module.weight, module.eps, groups=module.num_groups, bias=module.bias, centred=True)

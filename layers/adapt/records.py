"""Linear layers over records of which the scales, or the tables, learn; or low ranks that its codes follow."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from zoo.kernels.lowbit_matmul import lowbit_matmul, pack, unpack
from zoo.layers.adapt.marks import device_of
from zoo.layers.precision import KeepsFloat32, autocast_dtype
from zoo.layers.quant.layers import Linear
from zoo.layers.quant.record import Record


class TunedRecord(KeepsFloat32):
    r"""y = x W^T + b over a record, of which one tensor t is :math:`t + \delta` and everything else is frozen.

    Of integers, with t their scales (PEQA), :math:`W = (s + \delta)(q - z)`; of tables, with t these (SketchTune),
    :math:`W = (t + \delta)[q]`. Codes never change. :math:`\delta` is float32 and 0 at first.

    Args:
        layer: whose record and bias it takes over.
        part: name of the tensor.

    Papers: Kim et al., "Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer
    Quantization" (PEQA), arXiv 2305.14152; Zhang et al., "Sketch to Adapt", arXiv 2410.06364.
    """

    float32_parameters = ("delta",)

    def __init__(self, layer: Linear, part: str):
        super().__init__()
        self.weight, self.bias, self.part = layer.weight, layer.bias, part
        self.out_features, self.in_features = layer.out_features, layer.in_features
        held: Any = getattr(layer.weight, part)
        self.delta = nn.Parameter(torch.zeros(held.shape, device=device_of(held)))

    def changed(self) -> Tensor:
        """t + delta, float32."""
        held: Any = getattr(self.weight, self.part)
        return held.float() + self.delta

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x, under autocast in its dtype."""
        low = autocast_dtype(x.device.type)
        return self.weight.matmul(x if low is None else x.to(low), self.bias, changed={self.part: self.changed()})

    @torch.no_grad()
    def plain(self) -> Linear:
        """A layer over a record with the tensor in it, float32 as all its numbers are then."""
        return Linear(with_tensors(self.weight, {self.part: self.changed()}), self.bias)


class QuantisedLoRA(KeepsFloat32):
    r"""y = x W^T + b over integers whose codes are those of the record's numbers and a product of low rank (L4Q).

    .. math::
        v = \frac{s_0 (q_0 - z) + \alpha / r \, B A}{s} + z, \quad
        q = \mathrm{clamp}(\mathrm{round}(v), 0, 2^b - 1), \quad W = s (q - z)

    A, B and s learn, by :math:`G = (\partial L / \partial y)^T x`, which exists within the backward pass alone: B and A
    where v is in range, s by :math:`\sum G (q - v)` there and :math:`\sum G (q - z)` elsewhere, over its group. B is 0
    at first. What is computed is what a record of q and s computes, bit for bit, so none of A and B is left in a plain
    model.

    Args:
        layer: whose record, of integers, and bias it takes over.
        rank, alpha: r and alpha.
        like: whose dtype A and B have.

    Paper: Jeon et al., "L4Q: Parameter Efficient Quantization-Aware Fine-Tuning on Large Language Models", arXiv
    2402.04902. There the numbers beneath are those of the float model; here they are what the record stands for.
    """

    float32_parameters = ("delta",)

    def __init__(self, layer: Linear, rank: int, alpha: float, like: Tensor):
        super().__init__()
        self.weight, self.bias, self.factor = layer.weight, layer.bias, alpha / rank
        self.out_features, self.in_features = layer.out_features, layer.in_features
        place = {"device": device_of(layer.weight.scale), "dtype": like.dtype}
        self.A = nn.Parameter(torch.empty(rank, self.in_features, **place))
        self.B = nn.Parameter(torch.zeros(self.out_features, rank, **place))
        self.delta = nn.Parameter(torch.zeros(layer.weight.scale.shape, device=place["device"]))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x, under autocast in its dtype."""
        low = autocast_dtype(x.device.type)
        x = x if low is None else x.to(low)
        y = _FollowingCodes.apply(x, self.A, self.B, self.delta, self.factor, self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)  # type: ignore[union-attr]

    @torch.no_grad()
    def plain(self) -> Linear:
        """A layer over the record of q and s."""
        q, scale, _ = following(self.A, self.B, self.delta, self.factor, self.weight)
        return Linear(with_tensors(self.weight, {"codes": pack(q, self.weight.format.bits), "scale": scale}), self.bias)


def with_tensors(record: Record, found: dict[str, Tensor]) -> Record:
    """The record with other tensors, of float32 scales."""
    form = dataclasses.replace(record.format, scale_dtype="float32")
    return Record.holding(record.shape, form, {**dict(record.named_parameters()), **found})


def following(A: Tensor, B: Tensor, delta: Tensor, factor: float, record: Record) -> tuple[Tensor, Tensor, Tensor]:
    """q (N, C) uint8, s (N, G) float32 and v (N, G, S)."""
    first, top = record.scale.float(), 2**record.format.bits - 1
    scale, zero = first + delta, zeros_of(record)[..., None]
    q = unpack(record.codes, record.format.bits, record.shape[-1]).float().unflatten(-1, (first.shape[-1], -1))
    moved = (factor * (B.float() @ A.float())).unflatten(-1, (first.shape[-1], -1))
    v = (first[..., None] * (q - zero) + moved) / scale[..., None] + zero
    return v.round().clamp(0, top).flatten(-2).to(torch.uint8), scale, v


def zeros_of(record: Record) -> Tensor:
    """z (N, G), float32."""
    middle = torch.full_like(record.scale, 2 ** (record.format.bits - 1), dtype=torch.float32)
    return middle if record.zero is None else record.zero.float()


class _FollowingCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, delta: Tensor, factor: float, record: Record) -> Tensor:
        ctx.save_for_backward(x, A, B, delta)
        ctx.factor, ctx.record = factor, record
        q, scale, _ = following(A, B, delta, factor, record)
        return lowbit_matmul(x, pack(q, record.format.bits), scale, record.zero, bits=record.format.bits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (dy,), (x, A, B, delta), record = gradients, ctx.saved_tensors, ctx.record
        codes, scale, v = following(A, B, delta, ctx.factor, record)
        zero, q = zeros_of(record)[..., None], codes.float().view(v.shape)
        inside = (v >= 0) & (v <= 2**record.format.bits - 1)
        w = (scale[..., None] * (q - zero)).flatten(-2)
        rows = dy.flatten(0, -2).to(torch.promote_types(dy.dtype, torch.float32))
        G = (rows.mT @ x.flatten(0, -2).to(rows.dtype)).view(v.shape)
        ds = (G * torch.where(inside, q - v, q - zero)).sum(-1)
        inner = ctx.factor * (G * inside).flatten(-2)
        dA, dB = B.mT.to(inner) @ inner, inner @ A.mT.to(inner)
        dx = (dy.to(rows.dtype) @ w.to(rows.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, dA.to(A.dtype), dB.to(B.dtype), ds.to(delta.dtype), None, None

"""3D deformable attention, dispatched over its implementations and registered as one torch operator."""

from __future__ import annotations

from torch import Tensor

from zoo.kernels.deformable_attention_3d import factorised, native, reference
from zoo.kernels.dispatch import Implementation, Operation, Sizes
from zoo.kernels.operator import Like, define
from zoo.kernels.triton_support import triton_implementation


def deformable_attention_3d(
    value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor, *, impl: str = "auto"
) -> Tensor:
    r"""Features of images read at points in space: at a pixel, and as far away as its depth says that they are.

    .. math::
        y_q = \sum_p a_{qp} \, (F \otimes \Delta)(u_{qp}, v_{qp}, d_{qp})
              = \sum_p a_{qp} \sum_{c} w_c \, \Delta_c(d_{qp}) \, F_c

    where (F x Delta)(u, v, d) is trilinear interpolation in the volume F[j, i] Delta[j, i, k], zero outside. The second
    form, over the four pixels c around (u, v) with the shares w_c of bilinear interpolation and their depths
    interpolated at d by themselves, is the same without the volume; all implementations but "reference" compute it.
    One bin of depth ones, read at d = 1/2, leaves 2D deformable attention. Levels of features are a sum of calls.

    Args:
        value: F (B, H, W, N, C), any floating dtype; sums are float32 (float64 if an input is float64).
        depth: Delta (B, H, W, D), shared by the heads; usually a distribution over the bins.
        locations: (B, Q, N, P, 3) of u, v, d: 0 and 1 are the outer edges of the first and the last pixel, or bin. One
            that is further outside than a pixel or bin, or no number, reads nothing and has no gradient.
        weights: a (B, Q, N, P).
        impl: "auto" or the name of an implementation ("triton", "native", "factorised", "reference").

    Returns:
        (B, Q, N, C) in the dtype of value.

    Raises:
        ValueError: for tensors whose shapes or dtypes do not fit together, or images or volumes of no size.
        RuntimeError: when the named implementation cannot run on the device of the tensors.

    Paper: Li et al., "DFA3D: 3D Deformable Attention For 2D-to-3D Feature Lifting", arXiv 2307.12972.
    """
    sizes = Sizes("deformable_attention_3d")
    sizes.check("BHWNC", value=value)
    sizes.check("BHWD", depth=depth)
    sizes.check("BQNP3", locations=locations)
    sizes.check("BQNP", weights=weights)
    if min(sizes["H"], sizes["W"], sizes["D"]) < 1:
        raise ValueError(
            "deformable_attention_3d: value and depth must have a pixel and a bin or more, got value "
            f"{tuple(value.shape)}, depth {tuple(depth.shape)}"
        )
    impl = operation.check(impl, value=value, depth=depth, locations=locations, weights=weights)
    return _deformable_attention_3d(value, depth, locations, weights, impl)


operation = Operation(
    "deformable_attention_3d",
    triton_implementation("zoo.kernels.deformable_attention_3d.triton"),
    Implementation("native", native.forward, native.backward, native.obstacle),
    Implementation("factorised", factorised.forward),
    Implementation("reference", reference.forward),
)


def _shapes(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> Like:
    return Like(value, (*locations.shape[:3], value.shape[4]))


def _flops(value, depth, locations, *_) -> int:
    """Of each of four pixels a multiplication and an addition for both of its bins and all of its channels."""
    batch, queries, heads, points, _ = locations
    return 2 * 4 * batch * queries * heads * points * (2 + value[4])


_deformable_attention_3d = define(operation, "value depth locations weights", _shapes, flops=_flops)

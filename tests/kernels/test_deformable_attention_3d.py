"""3D deformable attention: torch's sampling of the volume, gradients, what the depth does to it, counts and errors."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels import available_implementations, deformable_attention_3d
from zoo.kernels.flops import flop_counter

IMPLS = [
    impl
    for impl in available_implementations("deformable_attention_3d")
    if os.environ.get("TRITON_INTERPRET") == "1" or impl != "triton"
]
SLOW = [pytest.param(impl, marks=[pytest.mark.slow] * (impl == "triton")) for impl in IMPLS]
BINS = 5


def made(**options: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two images of 4 by 3 pixels, heads of 2 channels, queries of 3 points, some of them outside; float64."""
    heads, bins = options.get("heads", 2), options.get("bins", BINS)
    value = torch.randn(2, 3, 4, heads, 2, dtype=torch.float64)
    depth = torch.randn(2, 3, 4, bins, dtype=torch.float64).softmax(-1)
    locations = 1.6 * torch.rand(2, 6, heads, 3, 3, dtype=torch.float64) - 0.3
    return value, depth, locations, torch.randn(2, 6, heads, 3, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def planes(value: Tensor, locations: Tensor) -> Tensor:
    """Bilinear sampling by torch, (B, Q, N, P, C)."""
    images = value.permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B N, C, H, W)
    grid = (2 * locations[..., :2] - 1).transpose(1, 2).flatten(0, 1)  # (B N, Q, P, 2)
    read = F.grid_sample(images, grid, align_corners=False)
    return read.unflatten(0, (len(value), -1)).permute(0, 3, 1, 4, 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_it_is_torchs_sampling_of_the_volume(impl):
    value, depth, locations, weights = made()
    volume = torch.einsum("bhwnc,bhwd->bncdhw", value, depth).flatten(0, 1)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)[:, None]  # (B N, 1, Q, P, 3)
    read = F.grid_sample(volume, grid, align_corners=False)[:, :, 0].unflatten(0, (2, 2))  # (B, N, C, Q, P)
    found = deformable_attention_3d(value, depth, locations, weights, impl=impl)
    close(found, torch.einsum("bncqp,bqnp->bqnc", read, weights))


@pytest.mark.parametrize("impl", SLOW)
def test_gradients(impl):
    value, depth, locations, weights = made(bins=2)
    small = value[:1, :2, :3, :, :1], depth[:1, :2, :3], locations[:1, :2, :, :2], weights[:1, :2, :, :2]
    tensors = [t.contiguous().requires_grad_() for t in small]
    assert torch.autograd.gradcheck(lambda *t: deformable_attention_3d(*t, impl=impl), tensors)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_bin_of_ones_leaves_attention_in_the_image(impl):
    value, depth, locations, weights = made(bins=1)
    locations[..., 2] = 0.5
    found = deformable_attention_3d(value, torch.ones_like(depth), locations, weights, impl=impl)
    close(found, (weights[..., None] * planes(value, locations)).sum(3))
    everywhere = torch.ones(2, 3, 4, BINS, dtype=torch.float64)
    locations[..., 2] = 0.1 + 0.8 * torch.rand_like(weights)  # between the centres of the first and the last bin
    close(deformable_attention_3d(value, everywhere, locations, weights, impl=impl), found)


@pytest.mark.parametrize("impl", IMPLS)
def test_features_are_read_at_their_depth_alone(impl):
    value, depth, locations, weights = made()
    known = torch.zeros_like(depth)
    known[..., 3] = 1.0
    locations[..., 2] = 3.5 / BINS  # the centre of that bin
    found = deformable_attention_3d(value, known, locations, weights, impl=impl)
    close(found, (weights[..., None] * planes(value, locations)).sum(3))
    locations[..., 2] = 1.5 / BINS
    assert not deformable_attention_3d(value, known, locations, weights, impl=impl).any()


def test_depth_and_features_are_not_interpolated_apart():
    """Where they differ between pixels, the product of two interpolations is another number."""
    value, depth, locations, weights = made()
    flat = torch.full_like(locations[..., 2], 0.5)
    levels = depth[..., 2][..., None, None].expand(-1, -1, -1, 2, -1)  # at the centre of the middle bin
    apart = (weights[..., None] * planes(value, locations) * planes(levels, locations)).sum(3)
    found = deformable_attention_3d(value, depth, torch.cat([locations[..., :2], flat[..., None]], -1), weights)
    assert (found - apart).abs().max() > 0.01


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_far_or_no_number_reads_nothing(impl):
    value, depth, locations, weights = made()
    expected = deformable_attention_3d(value, depth, locations[..., 1:, :], weights[..., 1:], impl=impl)
    far = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e300, -1e300, 9.0], dtype=torch.float64)
    locations[..., 0, 1] = far[:, None]
    tensors = [t.requires_grad_() for t in (value, depth, locations, weights)]
    found = deformable_attention_3d(*tensors, impl=impl)
    close(found, expected)
    gradients = torch.autograd.grad(found.sum(), tensors)
    assert all(torch.isfinite(g).all() for g in gradients) and not gradients[2][..., 0, :].any()


def test_the_volume_is_never_held():
    """What is counted has nothing to do with the size of the image or the number of bins."""
    counts = []
    for bins in (1, 50):
        with flop_counter(display=False) as counter, torch.no_grad():
            deformable_attention_3d(*made(bins=bins))
        counts.append(counter.get_flop_counts()["Global"])
    assert counts == [{torch.ops.zoo.deformable_attention_3d: 2 * 4 * (2 * 6 * 2 * 3) * (2 + 2)}] * 2


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        (0, (2, 3, 4, 4), r"value must have shape \(B, H, W, N, C\)"),
        (1, (2, 4, 4, 5), r"depth must have shape \(B, H, W, D\) = \(2, 3, 4, 'any'\), got \(2, 4, 4, 5\)"),
        (2, (2, 6, 2, 3, 2), r"locations must have shape .*got \(2, 6, 2, 3, 2\)"),
        (3, (2, 6, 2, 4), r"weights must have shape .*got \(2, 6, 2, 4\)"),
        (1, (2, 3, 4, 0), r"a pixel and a bin or more, got value \(2, 3, 4, 2, 2\), depth \(2, 3, 4, 0\)"),
    ],
)
def test_wrong_inputs_say_the_rule(which, shape, message):
    tensors = list(made())
    tensors[which] = torch.randn(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        deformable_attention_3d(*tensors)

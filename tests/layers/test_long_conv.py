"""Learned convolutions and the gated block over them: regularisation, finite memory, packing, by their equations."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels import long_conv, packed_long_conv
from zoo.layers.conv import H3Conv, LongConv, decaying_kernel, random_kernel

DIM, TAPS = 6, 9


def direct(u: Tensor, kernel: Tensor, D: Tensor) -> Tensor:
    """y_t = sum_j k_j u_{t-j} + D u_t over the taps there are, one product at a time."""
    y = torch.zeros_like(u)
    for t in range(u.shape[1]):
        y[:, t] = D * u[:, t]
        for j in range(min(t + 1, kernel.shape[1])):
            y[:, t] += kernel[:, j] * u[:, t - j]
    return y


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("length", [1, 2, TAPS - 1, TAPS, 3 * TAPS + 1])
def test_without_regularisation_it_is_the_direct_convolution(length):
    conv = LongConv(DIM, TAPS, lam=0, smooth_window=1).double()
    u = normal(2, length, DIM)
    assert torch.equal(conv.taps(), conv.kernel)
    close(conv(u).output, direct(u, conv.kernel, conv.D))


@pytest.mark.parametrize("lam", [0.001, 0.003, 0.1])
def test_squash_zeroes_the_small_taps_and_shrinks_the_others_by_the_threshold(lam):
    """Of normal taps with standard deviation 0.002 the share within the threshold is erf(lam / (0.002 sqrt 2))."""
    conv = LongConv(32, 500, lam=lam)
    before, taps = conv.kernel.detach().clone(), conv.taps()
    kept = before.abs() > lam
    assert torch.equal(taps != 0, kept)
    torch.testing.assert_close(taps[kept], before[kept] - lam * before[kept].sign())
    share = torch.erf(torch.tensor(lam / 0.002 / 2**0.5)).item()
    assert (taps == 0).float().mean().item() == pytest.approx(share, abs=0.02)
    (gradient,) = torch.autograd.grad(taps.sum(), conv.kernel)
    assert torch.equal(gradient, kept.float())
    assert torch.equal(conv.kernel, before) and torch.equal(conv.taps(), taps)  # never written back


def test_smooth_is_the_mean_over_neighbouring_taps_and_comes_before_squash():
    plain = LongConv(32, 1000, lam=0).kernel.detach()
    roughness = []
    for window in (1, 3, 7, 15):
        conv = LongConv(32, 1000, lam=0, smooth_window=window, init=lambda *_: plain.clone())
        padded, taps = F.pad(plain, (window // 2, window // 2)), conv.taps()
        torch.testing.assert_close(taps, padded.unfold(1, window, 1).mean(-1), atol=1e-9, rtol=1e-5)
        roughness.append((taps.diff(dim=1).square().sum() / taps.square().sum()).item())
        conv.lam = 0.001
        torch.testing.assert_close(conv.taps(), taps.sign() * (taps.abs() - 0.001).clamp(min=0))
    # of white noise the squared steps are 2 of its variance, of its mean over w taps 2 / w
    assert roughness == pytest.approx([2, 2 / 3, 2 / 7, 2 / 15], rel=0.05)


def test_kernel_dropout_drops_taps_of_the_squashed_kernel_in_training_only():
    conv = LongConv(32, 500, lam=0.001, kernel_dropout=0.25)
    squashed = LongConv.taps(conv.eval())
    dropped = conv.train().taps()
    alive = dropped != 0
    torch.testing.assert_close(dropped[alive], squashed[alive] / 0.75)
    assert alive.sum() / (squashed != 0).sum() == pytest.approx(0.75, abs=0.02)
    assert torch.equal(conv.eval().taps(), squashed)


def test_initial_kernels():
    """Channel i of "double_exp" falls from 0.02 by exp(-(dim / 2)^(i / dim)) over its length."""
    assert random_kernel(64, 1000).std().item() == pytest.approx(0.002, rel=0.02)
    kernel = torch.stack([decaying_kernel(16, 4) for _ in range(4000)])
    rates = torch.tensor([8 ** (i / 16) for i in range(16)])
    expected = 0.02 * torch.exp(-rates[:, None] * torch.tensor([0.0, 0.25, 0.5, 0.75]))
    torch.testing.assert_close(kernel.std(0), expected, rtol=0.06, atol=0)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 21])
@pytest.mark.parametrize("taps", [1, 4, 30])
def test_packed_convolution_is_one_convolution_a_sequence(length, taps):
    u, kernel, D = normal(3, length, 2), normal(2, taps), normal(2)
    seq_idx = torch.randint(0, 2, (3, length))  # ids come again
    expected = torch.empty_like(u)
    for row, ids in enumerate(seq_idx.tolist()):
        starts = [t for t in range(length) if t == 0 or ids[t] != ids[t - 1]]
        for a, b in zip(starts, [*starts[1:], length], strict=True):
            expected[row, a:b] = direct(u[None, row, a:b], kernel, D)[0]
    close(packed_long_conv(u, kernel, seq_idx, D=D), expected)


def test_packed_convolution_has_right_gradients_and_none_at_all_from_elsewhere():
    u, kernel, D = (t.requires_grad_() for t in (normal(1, 7, 2), normal(2, 5), normal(2)))
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    assert torch.autograd.gradcheck(lambda *t: packed_long_conv(t[0], t[1], seq_idx, D=t[2]), (u, kernel, D))
    (gradient,) = torch.autograd.grad(packed_long_conv(u, kernel, seq_idx)[:, 4].sum(), u)
    assert (gradient[:, 3:5] != 0).all() and not gradient[:, :3].any() and not gradient[:, 5:].any()
    assert packed_long_conv(u.bfloat16(), kernel, seq_idx).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="packed_long_conv: seq_idx must have shape"):
        packed_long_conv(u, kernel, seq_idx[:, 1:])
    with pytest.raises(ValueError, match="at least 1, got T 7, L 0"):
        packed_long_conv(u, kernel[:, :0], seq_idx)


def test_gated_block_is_the_equation():
    block = H3Conv(DIM, TAPS, lam=0.05, smooth_window=3, init=lambda *s: 0.3 * torch.randn(*s)).double()
    x = normal(2, 25, DIM)
    q, k, v = (x @ linear.weight.T + linear.bias for linear in (block.q_proj, block.k_proj, block.v_proj))
    shifted = direct(k, block.k_conv.taps(), block.k_conv.D)
    y = q * direct(shifted * v, block.conv.taps(), block.conv.D)
    close(block(x), y @ block.out_proj.weight.T + block.out_proj.bias)


@pytest.mark.parametrize("length", [1, 2, 16, 17])
@pytest.mark.parametrize("window", [1, 5])
def test_smoothing_in_frequency_is_the_sums_written_out(length, window):
    conv = LongConv(3, length, lam=0, smooth_window=window, smooth_freq=True).double()
    count, step = length // 2 + 1, 2j * math.pi / length
    spectrum = [sum(conv.kernel[:, t] * cmath.exp(-step * f * t) for t in range(length)) for f in range(count)]
    reach = range(-(window // 2), window // 2 + 1)
    smooth = [sum(math.exp(-n * n / 2) * spectrum[f + n] for n in reach if 0 <= f + n < count) for f in range(count)]
    weight = [1 if f == 0 or 2 * f == length else 2 for f in range(count)]
    taps = [
        sum(w * (s * cmath.exp(step * f * t)).real for f, (w, s) in enumerate(zip(weight, smooth, strict=True)))
        for t in range(length)
    ]
    close(conv.taps(), torch.stack(taps, dim=1) / length)  # pyright: ignore[reportArgumentType]
    if window == 1:
        close(conv.taps(), conv.kernel)


def test_long_conv_of_a_whole_row_is_packed_with_one_sequence():
    u, kernel = normal(2, 100, 3), normal(3, 100)
    close(packed_long_conv(u, kernel, torch.zeros(2, 100, dtype=torch.long)), long_conv(u, kernel))

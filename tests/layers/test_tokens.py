"""Token merging: pairs, means and sizes token by token; mass, padding, constants; attention that counts sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.layers.tokens import SizedAttention, match_pairs, merge, tokens_left


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def sizes(batch: int, length: int, padding: int = 0) -> Tensor:
    size = torch.randint(1, 5, (batch, length)).double()
    size[:, length - padding :] = 0
    return size


def merged_by_hand(keys: Tensor, x: Tensor, size: Tensor, rate: float, window: int | None) -> tuple[Tensor, Tensor]:
    """One row without padding, token by token."""
    length = len(x)
    best = {}
    for a in range(0, length, 2):
        odd = [b for b in range(1, length, 2) if window is None or -window <= (b - 1 - a) // 2 < window]
        best[a] = max((F.cosine_similarity(keys[a], keys[b], dim=0).item(), b) for b in odd)
    going = sorted(best, key=lambda a: -best[a][0])[: int(rate * length)]
    groups = {i: [i] for i in range(length) if i not in going}
    for a in going:
        groups[best[a][1]].append(a)
    means = [(size[g, None] * x[g]).sum(0) / size[g].sum() for g in groups.values()]
    return torch.stack(means), torch.stack([size[g].sum() for g in groups.values()])


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize(("length", "rate"), [(12, 0.25), (13, 0.5), (2, 0.5)])
def test_pairs_and_means_token_by_token(length, rate, window):
    keys, x, size = torch.randn(3, length, 5).double(), torch.randn(3, length, 4).double(), sizes(3, length)
    left = tokens_left(length, rate)
    y, total = merge(x, size, match_pairs(keys, size, rate, window), left)
    assert y.shape == (3, left, 4)
    for row in range(3):
        means, counts = merged_by_hand(keys[row], x[row], size[row], rate, window)
        close(y[row], means)
        close(total[row], counts)


@pytest.mark.parametrize("window", [None, 2])
def test_padding_takes_no_part(window):
    keys, x, size = torch.randn(2, 11, 5).double(), torch.randn(2, 11, 4).double(), sizes(2, 11)
    alone = merge(x, size, match_pairs(keys, size, 0.3, window), tokens_left(11, 0.3))
    keys, x, size = (F.pad(t, (0,) * (2 * t.dim() - 4) + (0, 9), value=7.0) for t in (keys, x, size))
    size[:, 11:] = 0
    y, total = merge(x, size, match_pairs(keys, size, 0.3, window), tokens_left(20, 0.3))
    close(y[:, :8], alone[0])
    close(total[:, :8], alone[1])
    assert not total[:, 8:].any()


def test_mass_is_conserved_constants_stay_and_the_rate_0_changes_nothing():
    keys, x, size = torch.randn(4, 30, 6).double(), torch.randn(4, 30, 3).double(), sizes(4, 30, padding=7)
    for rate in (0.1, 0.5):
        y, total = merge(x, size, match_pairs(keys, size, rate, 4), tokens_left(30, rate))
        assert torch.equal(total.sum(1), size.sum(1))
        close((y * total[..., None]).sum(1), (x * size[..., None]).sum(1))
        constant, total = merge(torch.ones_like(x), size, match_pairs(keys, size, rate), tokens_left(30, rate))
        close(constant[total > 0], torch.ones_like(constant[total > 0]))
    y, total = merge(x, size, match_pairs(keys, size, 0.0), 30)
    assert torch.equal(y[:, :23], x[:, :23]) and torch.equal(total, size)


def test_a_token_of_size_s_counts_as_s_tokens():
    layer = SizedAttention(8, 2).double()
    x = torch.randn(1, 5, 8).double()
    size = torch.tensor([[1.0, 3.0, 2.0, 1.0, 0.0]]).double()
    repeated = x.repeat_interleave(size[0].long(), dim=1)
    y = layer(repeated, torch.ones(1, 7).double())[0]
    close(layer(x, size)[0][:, :4], y[:, [0, 1, 4, 6]])


@pytest.mark.parametrize("length", [9, 12, 16])
def test_too_many_keys_are_averaged_over_runs(length):
    """As exact attention to tokens whose keys and values are those means; up to ``max_keys`` it is exact."""
    layer, full = SizedAttention(8, 2, max_keys=4).double(), SizedAttention(8, 2).double()
    full.load_state_dict(layer.state_dict())
    x, size = torch.randn(2, length, 8).double(), sizes(2, length)
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    run, means = -(-length // 4), []
    for start in range(0, length, run):
        part = slice(start, start + run)
        weight = size[:, None, part, None]
        total = weight.sum(2)
        means.append([*((h[:, :, part] * weight).sum(2) / total for h in (k, v)), total])
    keys, values, counts = (torch.stack(parts, dim=2) for parts in zip(*means, strict=True))
    scores = (q @ keys.transpose(2, 3) / 2 + counts.transpose(2, 3).log()).softmax(-1)
    expected = layer.proj((scores @ values).transpose(1, 2).flatten(2))
    close(layer(x, size)[0], expected)
    padded, wide = F.pad(x, (0, 0, 0, 7), value=3.0), F.pad(size, (0, 7))
    close(layer(padded, wide)[0][:, :length], expected)
    close(layer(x[:, :4], size[:, :4])[0], full(x[:, :4], size[:, :4])[0])
    close(layer(padded, F.pad(size[:, :3], (0, length + 4)))[0][:, :3], full(x[:, :3], size[:, :3])[0])


def test_wrong_options():
    keys, size = torch.zeros(1, 4, 2), torch.ones(1, 4)
    with pytest.raises(ValueError, match=r"the rate must be in \[0, 0.5\], got 0.6"):
        match_pairs(keys, size, 0.6)
    with pytest.raises(ValueError, match="window must be at least 1, or None for partners anywhere, got 0"):
        match_pairs(keys, size, 0.5, 0)
    with pytest.raises(ValueError, match="max_keys must be at least 1"):
        SizedAttention(8, 2, max_keys=0)

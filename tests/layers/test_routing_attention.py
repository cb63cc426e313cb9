"""Routing attention and its parts against the paper's formulas written out, one position at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

import zoo
from zoo.kernels.flops import flop_counter
from zoo.layers.attention import OnlineKMeans, RoutingAttention
from zoo.layers.attention.clusters import (
    BLOCK_SIZE,
    SORTED_FROM,
    balanced_attention,
    nearest_attention,
    sorted_nearest_attention,
)

SCALE = 0.5


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def points(*shape: int) -> Tensor:
    """(..., d) of mean 0 and variance 1."""
    x = torch.randn(shape, dtype=torch.float64)
    return F.layer_norm(x, shape[-1:])


def layer(num_clusters: int, cluster_size: int, dim: int = 16, **options) -> RoutingAttention:
    return RoutingAttention(dim, 2, num_clusters, cluster_size, **options).double()


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query (d), keys and values (n, d)."""
    return (SCALE * k @ q).softmax(0) @ v


def full_attention(attention: RoutingAttention, x: Tensor) -> Tensor:
    """Causal attention of the layer's weights, with rotary positions by complex numbers: x (B, T, D)."""
    qk, v = (F.linear(x, proj.weight).unflatten(-1, (2, -1)) for proj in (attention.qk_proj, attention.v_proj))
    centred = qk - qk.mean(-1, keepdim=True)
    qk = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    half = qk.shape[-1] // 2
    turns = torch.exp(1j * torch.outer(torch.arange(x.shape[1]), 10000.0 ** -(torch.arange(half).double() / half)))
    turned = torch.complex(qk[..., :half], qk[..., half:]) * turns[:, None]
    logits = torch.einsum("bthd,bshd->bhts", turned, turned.conj()).real / (2 * half) ** 0.5
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    y = torch.einsum("bhts,bshd->bthd", logits.masked_fill(future, -torch.inf).softmax(-1), v)
    return F.linear(y.flatten(2), attention.out_proj.weight)


@pytest.mark.parametrize("length", [23, SORTED_FROM + 5])
def test_both_forms_are_full_attention_when_one_cluster_holds_everything(length):
    attention = layer(num_clusters=1, cluster_size=length)
    x = torch.randn(1, length, 16, dtype=torch.float64)
    expected = full_attention(attention, x)
    close(attention.train()(x), expected)
    close(attention.eval()(x), expected)


def test_clusters_that_all_hold_everything_change_nothing():
    attention = layer(num_clusters=5, cluster_size=100)
    x = torch.randn(2, 23, 16, dtype=torch.float64)
    close(attention(x), full_attention(attention, x))
    assert attention.activity["covered"] == 1


@pytest.mark.parametrize("size", [1, 4, 9])
def test_balanced_clusters_take_their_nearest_positions(size):
    qk, v, centroids = points(2, 3, 13, 6), torch.randn(2, 3, 13, 6).double(), points(3, 4, 6)
    affinity = torch.einsum("bhtd,hkd->bhtk", qk, centroids)
    expected = torch.zeros_like(v)
    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        outputs: list[list[Tensor]] = [[] for _ in range(13)]
        for c in range(4):
            taken = sorted(range(13), key=lambda t: -affinity[b, h, t, c])[:size]
            for t in taken:
                past = [s for s in range(t + 1) if s in taken]
                outputs[t].append(attend(qk[b, h, t], qk[b, h, past], v[b, h, past]))
        for t, found in enumerate(outputs):
            if found:
                expected[b, h, t] = torch.stack(found).mean(0)
    y, members = balanced_attention(qk, v, affinity, size, SCALE)
    close(y, expected)
    assert members.shape == (2, 3, 4, size) and bool((members.diff(dim=-1) > 0).all())


def test_nearest_clusters_hold_the_past_of_the_same_centroid():
    q, k, v = points(2, 3, 5, 6), points(2, 3, 13, 6), torch.randn(2, 3, 13, 6).double()
    cluster, ids = torch.randint(0, 3, (2, 3, 13)), torch.tensor([[-1] * 2 + [4] * 11, [0] * 9 + [7] * 4])
    mask = torch.ones(5, 13, dtype=torch.bool).tril(8) & (ids[:, 8:, None] == ids[:, None, :])
    y = nearest_attention(q, k, v, cluster[..., 8:], cluster, SCALE, mask[:, None])
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5)).tolist():
        t = 8 + i
        past = [s for s in range(t + 1) if cluster[b, h, s] == cluster[b, h, t] and ids[b, s] == ids[b, t]]
        close(y[b, h, i], attend(q[b, h, i], k[b, h, past], v[b, h, past]))


@pytest.mark.parametrize("length", [1, BLOCK_SIZE, 3 * BLOCK_SIZE + 7])
def test_the_sorted_form_is_the_nearest_form(length):
    """Clusters of any size, also empty ones, one with all positions and ones that fill their blocks; gradients too."""
    uneven = torch.multinomial(torch.tensor([0.5, 0.0, 0.1, 0.4]), 2 * length, replacement=True).view(2, 1, length)
    cluster = torch.cat([uneven, torch.full_like(uneven, 3), torch.arange(length).expand_as(uneven) % 4], dim=1)
    qk, v = points(2, 3, length, 6).requires_grad_(), torch.randn(2, 3, length, 6).double().requires_grad_()
    y = sorted_nearest_attention(qk, v, cluster, 4, SCALE)
    expected = nearest_attention(qk, qk, v, cluster, cluster, SCALE)
    close(y, expected)
    weight = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad((y * weight).sum(), (qk, v)),
        torch.autograd.grad((expected * weight).sum(), (qk, v)),
        strict=True,
    ):
        close(a, b)


def test_the_two_forms_agree_on_even_clusters_of_tight_points():
    """Where each centroid's nearest positions are as many as it takes, the forms are one."""
    cluster = torch.randperm(24).remainder(4).view(1, 1, 24)
    qk, v = points(1, 1, 24, 6), torch.randn(1, 1, 24, 6).double()
    affinity = F.one_hot(cluster, 4) + 0.4 * torch.rand(1, 1, 24, 4)
    expected = nearest_attention(qk, qk, v, cluster, cluster, SCALE)
    close(balanced_attention(qk, v, affinity, 6, SCALE)[0], expected)
    assert not torch.allclose(balanced_attention(qk, v, affinity, 5, SCALE)[0], expected)


def test_training_looks_ahead_by_membership_only_and_evaluation_not_at_all():
    attention = layer(num_clusters=3, cluster_size=4)
    for length in (20, SORTED_FROM + 20):
        row = torch.randn(1, length, 16, dtype=torch.float64)
        changed = torch.cat([row[:, :-1], -row[:, -1:]], dim=1)
        close(attention.eval()(row)[:, :-1], attention(changed)[:, :-1])
        if length == 20:
            assert not torch.allclose(attention.train()(row)[:, :-1], attention(changed)[:, :-1])
    x = torch.randn(1, 20, 16, dtype=torch.float64, requires_grad=True)
    for form in (attention.train(), attention.eval()):
        (gradient,) = torch.autograd.grad(form(x)[:, 12].square().sum(), x)
        assert gradient[:, :13].any() and not gradient[:, 13:].any()


def test_packed_sequences_and_padding_leak_no_values_in_training():
    attention = layer(num_clusters=3, cluster_size=9)
    x = torch.randn(1, 20, 16, dtype=torch.float64, requires_grad=True)
    seq_idx = torch.tensor([[-1] * 4 + [0] * 7 + [1] * 9])
    y = attention(x, seq_idx=seq_idx)
    assert torch.isfinite(y).all()
    for seen in (slice(4, 11), slice(11, 20)):
        (gradient,) = torch.autograd.grad(y[:, seen].square().sum(), x, retain_graph=True)
        assert gradient[:, seen].any()
        gradient[:, seen] = 0
        assert not gradient.any()
    assert attention.kmeans.counts.sum(-1).tolist() == [16, 16]
    with torch.no_grad():
        other = torch.cat([100 * torch.randn(1, 4, 16, dtype=torch.float64), x[:, 4:]], dim=1)
        loss = attention.auxiliary_losses["commitment"]
        close(attention(other, seq_idx=seq_idx)[:, 4:], y[:, 4:])
        close(attention.auxiliary_losses["commitment"], loss)


def test_long_packed_rows_are_masked_piece_by_piece():
    attention, cut = layer(num_clusters=3, cluster_size=4).eval(), SORTED_FROM - 3
    x = torch.randn(1, 2 * SORTED_FROM + 9, 16, dtype=torch.float64)
    seq_idx = (torch.arange(x.shape[1]) >= cut).long()[None]
    close(attention(x, seq_idx=seq_idx), torch.cat([attention(x[:, :cut]), attention(x[:, cut:])], dim=1))


def test_decoding_goes_on_from_a_long_prompt():
    """The prompt is sorted by cluster, the steps after it read the cache."""
    attention = layer(num_clusters=3, cluster_size=4).eval()
    x = torch.randn(2, SORTED_FROM + 12, 16, dtype=torch.float64)
    state = attention.init_state(2)
    parts = [attention(x[:, :SORTED_FROM], state), attention(x[:, SORTED_FROM : SORTED_FROM + 8], state)]
    parts += [attention(x[:, t : t + 1], state) for t in range(SORTED_FROM + 8, SORTED_FROM + 12)]
    close(torch.cat(parts, dim=1), attention(x))
    assert state.cluster.unique().tolist() == [0, 1, 2]


def flops(length: int, num_clusters: int) -> int:
    """Of the training form without the projections, whose cost is linear in the length."""
    with FakeTensorMode(), flop_counter(display=False) as counter:
        RoutingAttention(64, 2, num_clusters, length // num_clusters)(torch.randn(1, length, 64))
    return counter.get_total_flops() - 3 * 2 * length * 64 * 64


@pytest.mark.parametrize(("clusters", "exponent"), [(math.isqrt, 1.5), (lambda length: 1, 2.0)])
def test_cost_grows_as_the_power_3_2_with_as_many_clusters_as_the_root_of_the_length(clusters, exponent):
    lengths = [4**n for n in range(4, 9)]
    counts = torch.tensor([flops(length, clusters(length)) for length in lengths], dtype=torch.float64)
    slopes = counts.log().diff() / math.log(4)
    torch.testing.assert_close(slopes, torch.full_like(slopes, exponent), atol=0.05, rtol=0)


def separated(kmeans: OnlineKMeans, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Points around one direction a cluster, and the centroids moved near them; the means of the clusters (H, K, d)."""
    heads, clusters, dim = kmeans.centroids.shape
    cluster = torch.arange(length).remainder(clusters).expand(batch, heads, length)
    directions = dim**0.5 * torch.eye(dim, dtype=torch.float64)[:clusters]
    x = F.layer_norm(directions[cluster] + 0.2 * torch.randn(batch, heads, length, dim).double(), (dim,))
    means = torch.stack([x[:, :, c::clusters].mean((0, 2)) for c in range(clusters)], dim=1)
    kmeans.centroids.copy_(F.layer_norm(means + 0.8 * torch.randn_like(means), (dim,)))
    return x, means


def test_centroids_converge_to_the_means_of_separated_clusters():
    kmeans = OnlineKMeans(2, 4, 12, decay=0.9).double()
    x, means = separated(kmeans, 3, 40)
    start = kmeans.centroids.clone()
    assert (start - means).norm(dim=-1).min() > 1
    for step in range(1, 201):
        cluster = kmeans(x).argmax(-1)
        kmeans.observe(x, cluster)
        kmeans.update()
        if step in (1, 7, 200):
            close(kmeans.centroids, means + 0.9**step * (start - means))
    assert (kmeans.centroids - means).norm(dim=-1).max() < 1e-6


def test_without_memory_an_update_is_a_step_of_lloyd_and_empty_centroids_stay():
    kmeans = OnlineKMeans(1, 3, 8, decay=0.0).double()
    x = points(2, 1, 30, 8)
    x[..., 0] += 5  # no point is on the side of the last centroid
    kmeans.centroids.zero_()[0, :, :2] = torch.tensor([[1, 1], [1, -1], [-1, 0]])
    before, cluster = kmeans.centroids.clone(), kmeans(x).argmax(-1)
    kmeans.observe(x, cluster)
    kmeans.observe(x, cluster)
    assert torch.equal(kmeans.centroids, before)
    kmeans.update()
    for c in (0, 1):
        close(kmeans.centroids[0, c], x[cluster == c].mean(0))
    assert torch.equal(kmeans.centroids[0, 2], before[0, 2])
    assert not kmeans.sums.any() and not kmeans.counts.any()


def test_centroids_move_once_a_step_of_the_optimiser_and_only_in_training():
    attention = layer(num_clusters=3, cluster_size=8, decay=0.5)
    start, x = attention.kmeans.centroids.clone(), torch.randn(2, 12, 16, dtype=torch.float64)
    attention(x)
    attention(x)
    assert torch.equal(attention.kmeans.centroids, start)
    attention.eval()(x)
    attention.train()(x, attention.init_state(2))
    assert torch.equal(attention.kmeans.centroids, start) and not attention.auxiliary_losses
    sums, counts = attention.kmeans.sums.clone(), attention.kmeans.counts[..., None].clone()
    zoo.after_step(attention)
    close(attention.kmeans.centroids, torch.where(counts > 0, 0.5 * start + 0.5 * sums / counts.clamp(min=1), start))


def test_the_order_of_the_centroids_does_not_matter():
    attention = layer(num_clusters=4, cluster_size=5)
    x = torch.randn(2, 19, 16, dtype=torch.float64)
    before = [attention.train()(x), attention.eval()(x)]
    attention.kmeans.centroids.copy_(attention.kmeans.centroids[:, [2, 0, 3, 1]])
    close(torch.stack([attention.train()(x), attention.eval()(x)]), torch.stack(before))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim into even heads.*num_heads 3"),
        ({"head_dim": 5}, "head_dim 5"),
        ({"num_clusters": 0}, "num_clusters and cluster_size must be at least 1.*num_clusters 0"),
        ({"cluster_size": 0}, "cluster_size 0"),
        ({"commitment_weight": -1.0}, "commitment_weight -1.0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_do_not_fit_say_the_rule(arguments, message):
    with pytest.raises(ValueError, match=message):
        RoutingAttention(**{"dim": 16, "num_heads": 2, "num_clusters": 2, "cluster_size": 4} | arguments)

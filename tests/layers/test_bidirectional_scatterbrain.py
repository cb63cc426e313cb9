"""Scatterbrain in both directions: its definition with full matrices, its limits, padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.layers.attention import BidirectionalScatterbrain
from zoo.layers.attention.lsh import lsh_buckets
from zoo.layers.attention.sparse_low_rank import scatterbrain_weights

DIM, HEADS, LENGTH = 24, 3, 37


def layer(**options) -> BidirectionalScatterbrain:
    sizes = {"window": 7, "num_features": 12, "cluster_size": 5, "num_hashes": 2}
    return BidirectionalScatterbrain(DIM, HEADS, **{**sizes, **options}).double()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def defined(mixer: BidirectionalScatterbrain, x: Tensor) -> Tensor:
    """x (T, D) through the matrices of all pairs."""
    scale, length = mixer.head_dim**-0.25, len(x)
    q, k, v = (proj(x).unflatten(-1, (HEADS, -1)) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    q, k = q * scale, k * scale
    offset = torch.arange(length) - torch.arange(length)[:, None]
    support = ((offset >= -(mixer.window // 2)) & (offset < (mixer.window + 1) // 2)).repeat(HEADS, 1, 1)
    if len(mixer.directions):
        found = lsh_buckets(q[None], k[None], mixer.directions, mixer.cluster_size)
        for query, key in zip(found.query_bucket[0].unbind(1), found.key_bucket[0].unbind(1), strict=True):
            support |= query[:, :, None] == key[:, None]
    weights = scatterbrain_weights(q.transpose(0, 1), k.transpose(0, 1), mixer.projection, support)
    y = weights @ v.transpose(0, 1) / weights.sum(-1, keepdim=True)
    return mixer.out_proj(y.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("num_hashes", [0, 1, 3])
@pytest.mark.parametrize("window", [1, 2, 7, 200])
def test_it_is_the_definition(window, num_hashes):
    mixer, x = layer(window=window, num_hashes=num_hashes), torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    y = mixer(x)
    assert torch.equal(mixer.eval()(x), y)
    for row in range(2):
        close(y[row], defined(mixer, x[row]))


def test_a_window_of_everything_is_softmax_attention():
    mixer, x = layer(window=2 * LENGTH), torch.randn(1, LENGTH, DIM, dtype=torch.float64)
    heads = (proj(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for proj in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    close(mixer(x), mixer.out_proj(expected))


@pytest.mark.parametrize("num_hashes", [0, 2])
@pytest.mark.parametrize("real", [1, 6, 20])
def test_padding_at_the_end_changes_nothing(real, num_hashes):
    mixer, x = layer(num_hashes=num_hashes), torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    mask = torch.stack([torch.arange(LENGTH) < real, torch.ones(LENGTH, dtype=torch.bool)])
    found = mixer(x.masked_fill(~mask[..., None], 30.0), mask)
    assert torch.isfinite(found).all()
    close(found[0, :real], mixer(x[:1, :real])[0])
    close(found[1], mixer(x[1:])[0])


def test_every_parameter_learns_and_large_inputs_stay_finite():
    mixer = layer()
    mixer(torch.randn(2, LENGTH, DIM, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in mixer.parameters())
    assert torch.isfinite(mixer.float()(100 * torch.randn(1, LENGTH, DIM))).all()
    with pytest.raises(ValueError, match="reads the future and has no state"):
        mixer.init_state(1)

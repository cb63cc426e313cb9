"""Scatterbrain over token sequences: padding, positions, both directions, pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import pad

import zoo


def built(**options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model("scatterbrain_text_nano", dtype=torch.float64, **options).eval()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("num_hashes", [0, 2])
@pytest.mark.parametrize("pair", [True, False])
def test_padding_changes_nothing_wherever_it_stands(pair, num_hashes):
    model = built(pair=pair, num_hashes=num_hashes, window=4, cluster_size=4)
    tokens = torch.randint(0, 15, (3, 2, 20) if pair else (3, 20))
    expected = model(tokens)
    for padded in (pad(tokens, (0, 13), value=-1), pad(tokens, (3, 1), value=-100)):
        close(model(padded), expected)
    mixed = pad(tokens, (0, 5), value=-1)
    mixed[1] = torch.randint(0, 15, mixed[1].shape)
    close(model(mixed)[[0, 2]], expected[[0, 2]])
    between = torch.cat([tokens[..., :7], torch.full_like(tokens[..., :2], -1), tokens[..., 7:]], dim=-1)
    close(model(between), expected)


def test_every_token_counts_from_both_sides_and_at_its_place():
    model, tokens = built(window=4), torch.randint(0, 15, (1, 20))
    features = model.embed(tokens).detach().requires_grad_()
    middle = model.blocks[0](features, tokens >= 0)[0, 10].sum()
    assert torch.autograd.grad(middle, features)[0].abs().sum(-1).gt(0).all()
    assert (model(tokens) - model(tokens.flip(1))).abs().max() > 1e-3


def test_a_window_of_everything_is_a_plain_encoder():
    """Weights of softmax attention in place of the estimate."""
    model, tokens = built(window=100, depth=1), torch.randint(0, 15, (2, 20))
    x, block = model.embed(tokens), model.blocks[0]
    normal, mixer = block.norm(x), block.mixer
    heads = (p(normal).unflatten(-1, (4, -1)).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    attended = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    x = x + mixer.out_proj(attended)
    x = x + block.mlp(block.mlp_norm(x))
    close(model(tokens), model.head(model.norm(x).mean(1)))
    with pytest.raises(ValueError, match="dim must be even"):
        zoo.create_model("scatterbrain_text_nano", dim=65, head_dim=16)

"""Latent attention: the absorbed form is the expanded one, every way of stepping agrees, YaRN's published figures."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from zoo.layers.attention.latent import LatentAttention
from zoo.layers.attention.scaling import Yarn


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("length", [1, 5])
def test_absorbed_is_the_expanded_form(dtype, tolerance, length):
    torch.manual_seed(0)
    layer = LatentAttention(
        96, 6, kv_lora_rank=40, qk_nope_head_dim=24, qk_rope_head_dim=10, v_head_dim=14, yarn=Yarn(4.0, 16)
    ).to(dtype)
    parts = (
        torch.randn(2, 6, length, 24), torch.randn(2, 6, length, 10),
        torch.randn(2, 1, 33, 40), torch.randn(2, 1, 33, 10),
    )  # fmt: skip
    mask = torch.rand(2, 1, length, 33) < 0.7
    parts = tuple(part.to(dtype) for part in parts)
    for given in (mask | (torch.arange(33) == 0), None):
        close(layer.absorbed(*parts, given), layer.expanded(*parts, given), tolerance)


@pytest.mark.parametrize("kv_lora_rank", [8, 64])
def test_every_way_of_stepping_agrees_and_both_forms_are_used(kv_lora_rank, monkeypatch):
    torch.manual_seed(0)
    layer = LatentAttention(
        32, 4, kv_lora_rank=kv_lora_rank, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
    ).double()
    used = []
    for form in ("absorbed", "expanded"):
        plain = getattr(layer, form)
        monkeypatch.setattr(layer, form, lambda *a, form=form, plain=plain: used.append(form) or plain(*a))
    x = torch.randn(2, 60, 32, dtype=torch.float64)
    whole = layer(x)
    for cuts in ([0, 10, 60], [0, 1, 3, 20, 60], list(range(61))):
        state = layer.init_state(2)
        parts = [layer(x[:, a:b], state) for a, b in pairwise(cuts)]
        close(torch.cat(parts, dim=1), whole, 1e-10)
        state.crop(20)
        close(layer(x[:, 20:], state), whole[:, 20:], 1e-10)
    assert set(used) == {"absorbed", "expanded"}


def test_yarn_has_the_figures_of_the_published_models():
    v3, lite = Yarn(40, mscale_all_dim=1.0), Yarn(40, mscale=0.707, mscale_all_dim=0.707)
    assert math.isclose(192**-0.5 * v3.softmax_scale, 0.1352338, rel_tol=1e-6)
    assert math.isclose(192**-0.5 * lite.softmax_scale, 0.1147214, rel_tol=1e-6)
    assert v3.rotation_scale == lite.rotation_scale == 1.0
    plain = 10000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    ratio = plain / v3.frequencies(plain, 10000.0)
    assert (ratio[:11] == 1).all() and (ratio[11:23] > 1).all() and (ratio[11:23] < 40).all()
    torch.testing.assert_close(ratio[23:], torch.full((9,), 40.0, dtype=torch.float64))

"""DeltaNet and Gated DeltaNet against their equations written out, with transformers' delta rule in the middle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from zoo.layers.ssm import DeltaNet, GatedDeltaNet

DIM, HEADS = 24, 3


def projected(x: Tensor, projection: torch.nn.Linear, conv: torch.nn.Conv1d) -> Tensor:
    """(B, T, H, D) behind the short convolution."""
    padded = F.pad((x @ projection.weight.T).mT, (conv.kernel_size[0] - 1, 0))
    return F.silu(F.conv1d(padded, conv.weight, groups=conv.groups)).mT.unflatten(-1, (HEADS, -1))


def equation(layer: DeltaNet, x: Tensor, largest_beta: float) -> Tensor:
    q, k, v = (projected(x, getattr(layer, f"{n}_proj"), getattr(layer, f"{n}_conv1d")).float() for n in "qkv")
    beta = largest_beta * torch.sigmoid(x @ layer.b_proj.weight.T)
    g = torch.zeros_like(beta)
    if isinstance(layer, GatedDeltaNet):
        g = -layer.A_log.exp() * F.softplus(x @ layer.a_proj.weight.T + layer.dt_bias)
    o, _ = torch_recurrent_gated_delta_rule(q, k, v, g, beta, None, False, use_qk_l2norm_in_kernel=True)
    o = o * (o.square().mean(-1, keepdim=True) + layer.o_norm.eps).rsqrt() * layer.o_norm.weight
    if isinstance(layer, GatedDeltaNet):
        o = o * F.silu((x @ layer.g_proj.weight.T).unflatten(-1, (HEADS, -1)))
    return o.flatten(-2) @ layer.out_proj.weight.T


@pytest.mark.parametrize(
    ("build", "largest_beta"),
    [
        (lambda: DeltaNet(DIM, HEADS), 1),
        (lambda: DeltaNet(DIM, HEADS, negative_eigenvalues=True), 2),
        (lambda: GatedDeltaNet(DIM, HEADS, head_dim=6), 1),
    ],
)
def test_equals_the_equation(build, largest_beta):
    layer, x = build(), torch.randn(2, 40, DIM)
    torch.nn.init.normal_(layer.o_norm.weight)
    torch.testing.assert_close(layer(x), equation(layer, x, largest_beta), atol=2e-5, rtol=1e-4)


def test_state_size_is_that_of_the_state():
    layer = GatedDeltaNet(DIM, HEADS, head_dim=6, d_conv=3)
    state = layer.init_state(1)
    assert layer.state_size(100) == sum(t.numel() for t in (state.q, state.k, state.v, state.memory))


def test_errors_name_the_rule():
    with pytest.raises(ValueError, match="num_heads must divide dim where head_dim is None, got dim 24, num_heads 5"):
        DeltaNet(24, 5)
    with pytest.raises(ValueError, match=r"expand_v \* head_dim must be an integer from 1 on, got 1.5 \* 3"):
        DeltaNet(24, 8, expand_v=1.5)


def test_a_norm_in_place_of_the_gated_one_is_in_effect() -> None:
    layer = GatedDeltaNet(DIM, HEADS, head_dim=4)
    x = torch.randn(2, 5, DIM)
    with torch.no_grad():
        layer.o_norm.weight.uniform_(0.5, 1.5)
    expected = layer(x)
    handle = layer.o_norm.register_forward_hook(lambda norm, inputs, y: 2 * y)
    torch.testing.assert_close(layer(x), 2 * expected)
    handle.remove()
    replaced = torch.nn.RMSNorm(8, layer.o_norm.eps)
    replaced.weight = layer.o_norm.weight
    layer.o_norm = replaced  # type: ignore[assignment]
    torch.testing.assert_close(layer(x), expected)

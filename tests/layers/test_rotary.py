"""Rotary positions: angles by complex numbers, scalings beside transformers', frequencies that no cast rounds."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from zoo.layers import CausalAttention, OffsetRMSNorm
from zoo.layers.attention import Linear, Llama3, Rotary, RotaryScaling, Yarn

SCALED = {  # ours, transformers' parameters
    "linear": (Linear(3.5), {"factor": 3.5}),
    "llama3": (
        Llama3(8.0, 64, 1.0, 4.0),
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn": (
        Yarn(4.0, 32, beta_fast=8.0, magnitude=1.3),
        {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 8.0, "attention_factor": 1.3},
    ),
    "yarn-between": (
        Yarn(4.0, 32, beta_fast=3.0, truncate=False),
        {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 3.0, "truncate": False},
    ),
}


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_turn_as_complex_numbers_and_the_rest_stays(interleaved):
    rotary, x = Rotary(6, 50.0, interleaved=interleaved).double(), torch.randn(2, 5, 3, 9, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 90, 3, 1]])
    (y,) = rotary(positions, x)
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + 3) for i in range(3)]
    assert torch.equal(y[..., 6:], x[..., 6:])
    for i, (a, b) in enumerate(pairs):
        turn = torch.exp(1j * positions.double() * 50.0 ** (-i / 3))[..., None]
        expected = torch.complex(x[..., a], x[..., b]) * turn
        torch.testing.assert_close(torch.complex(y[..., a], y[..., b]), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", SCALED)
def test_scalings_are_those_of_transformers(kind):
    scaling, parameters = SCALED[kind]
    kind = scaling.kind
    config = transformers.LlamaConfig(
        hidden_size=96, num_attention_heads=4, max_position_embeddings=128,
        rope_parameters={"rope_type": kind, "rope_theta": 500.0} | parameters,
    )  # fmt: skip
    expected, magnitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    rotary, plain = Rotary(24, 500.0, scaling=scaling), Rotary(24, 500.0)
    torch.testing.assert_close(rotary.frequency, expected, atol=0, rtol=1e-5)
    assert not torch.allclose(rotary.frequency, plain.frequency)
    cos, sin = rotary.tables(torch.arange(3))
    torch.testing.assert_close(cos.square() + sin.square(), torch.full((3, 12), float(magnitude**2)))
    assert RotaryScaling.of(dataclasses.asdict(scaling)) == scaling


def test_frequencies_are_never_rounded_and_never_lost():
    exact = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    rotary = Rotary(8)
    assert rotary.state_dict() == {}
    assert torch.equal(rotary.bfloat16().frequency, exact.float())
    assert torch.equal(rotary.double().frequency, exact)
    assert torch.equal(pickle.loads(pickle.dumps(rotary)).frequency, exact)
    with torch.device("meta"):
        empty, holder = Rotary(8), nn.Sequential(Rotary(8))
    assert torch.equal(empty.to_empty(device="cpu").frequency, exact.float())
    holder.load_state_dict({}, assign=True)  # which gives it parameters, had it any
    x = torch.randn(1, 3, 2, 8)
    assert torch.equal(holder[0](torch.arange(3), x)[0], Rotary(8)(torch.arange(3), x)[0])


def test_a_norm_around_one():
    x, norm = torch.randn(3, 5, dtype=torch.float64), OffsetRMSNorm(5, eps=0.1).double()
    plain = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x), plain)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(5))
    torch.testing.assert_close(norm(x), plain * (1 + norm.weight))
    low = norm.bfloat16()
    low.weight.data.fill_(2**-9)  # lost where 1 is added in bfloat16
    x = x.bfloat16()
    expected = (x.float() / (x.float().square().mean(-1, keepdim=True) + 0.1).sqrt() * (1 + 2**-9)).bfloat16()
    assert torch.equal(low(x), expected) and low(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotary(5), "dim must be even and at least 2, got 5"),
        (lambda: Linear(0.5), "linear: factor and length must be at least 1, got 0.5"),
        (lambda: Llama3(low=4.0), "llama3: high must be above low, got 4.0 and 4.0"),
        (lambda: RotaryScaling.of({"kind": "dynamic"}), "must be one of linear, llama3, yarn, got 'dynamic'"),
        (lambda: CausalAttention(8, 2, rotary=Rotary(6)), "at most the 4 channels of a head, got one for 6"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

from __future__ import annotations

from functools import partial

import pytest
import torch

from zoo.kernels import ssd
from zoo.kernels.linear_attention import linear_attention

GATES = ["plain", "scalar", "vector"]
ALL = ["reference", "chunked", "triton"]


def make_inputs(gate, batch=2, length=40, heads=2, key_dim=5, value_dim=6, dtype=torch.float32, decay=1.0) -> dict:
    generator = torch.Generator().manual_seed(length + heads)
    randn, rand = partial(torch.randn, generator=generator), partial(torch.rand, generator=generator)
    gates = {"scalar": (batch, length, heads), "vector": (batch, length, heads, key_dim)}
    inputs = {
        "q": randn(batch, length, heads, key_dim).to(dtype),
        "k": randn(batch, length, heads, key_dim).to(dtype),
        "v": randn(batch, length, heads, value_dim).to(dtype),
        "initial_state": randn(batch, heads, key_dim, value_dim),
    }
    return inputs if gate == "plain" else inputs | {"log_decay": (-decay * rand(gates[gate])).to(dtype)}


def small(impl: str, gate: str, length: int, **options) -> dict:
    """Inputs of ``length`` steps, of 19 in one head for the interpreted kernels."""
    return make_inputs(gate, 1, 19, 1, **options) if impl == "triton" else make_inputs(gate, length=length, **options)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("gate", GATES)
def test_is_attention_weighted_by_the_decays_in_between(gate, impl):
    """o_i = scale sum_{j <= i} sum_c q_ic k_jc exp(sum of g_c over (j, i]) v_j, written out in numbers."""
    inputs = {name: t.double() for name, t in make_inputs(gate, 1, 11, 1, 3, 2).items() if name != "initial_state"}
    q, k, v = (inputs[name][0, :, 0] for name in "qkv")
    g = inputs["log_decay"][0, :, 0].reshape(11, -1).expand(11, 3) if gate != "plain" else torch.zeros(11, 3)
    expected = torch.zeros(11, 2, dtype=torch.float64)
    for i in range(11):
        for j in range(i + 1):
            weight = sum(q[i, c] * k[j, c] * g[j + 1 : i + 1, c].sum().exp() for c in range(3))
            expected[i] += 0.7 * weight * v[j]
    output = linear_attention(**inputs, scale=0.7, chunk_size=4, impl=impl).output
    torch.testing.assert_close(output[0, :, 0], expected)
    default = linear_attention(**inputs, impl=impl).output
    torch.testing.assert_close(default[0, :, 0], expected / 0.7 * 3**-0.5)


def test_with_a_scalar_decay_it_is_state_space_duality():
    inputs = make_inputs("scalar", length=50, dtype=torch.float64)
    q, k, v, state, g = inputs.values()
    ones = torch.ones(2, dtype=torch.float64)
    dt = torch.ones_like(g)
    expected, final = ssd(v, dt, 0 * ones, k, q, initial_state=state.double().mT, impl="reference")
    output, found = linear_attention(q, k, v, log_decay=0 * g, scale=1.0, initial_state=state.double())
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, final.mT)
    constant = torch.tensor([-0.3, -2.0], dtype=torch.float64)
    expected, final = ssd(v, dt, constant, k, q, initial_state=state.double().mT, impl="reference")
    output, found = linear_attention(q, k, v, log_decay=constant.expand_as(g), scale=1.0, initial_state=state.double())
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, final.mT)


@pytest.mark.parametrize("impl", ["chunked", "triton"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 9), (1, 2, 70, 100)], ids=str)
def test_accuracy_over_sizes(gate, shape, impl, assert_accurate):
    batch, heads, key_dim, value_dim = (1, 1, *shape[2:]) if impl == "triton" else shape
    inputs = make_inputs(gate, batch, 19 if impl == "triton" else 90, heads, key_dim, value_dim)
    assert_accurate(partial(linear_attention, chunk_size=16), inputs, impl)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("chunk_size", [1, 24, 64, 300])
def test_accuracy_over_chunk_sizes(gate, chunk_size, assert_accurate):
    seq_idx = (torch.arange(150) >= 90).long()[None]
    call = partial(linear_attention, seq_idx=seq_idx, chunk_size=chunk_size)
    assert_accurate(call, make_inputs(gate, 1, 150, 2, 12, 11), "chunked")


@pytest.mark.parametrize("gate", GATES)
def test_accuracy_of_the_largest_triton_chunk(gate, assert_accurate):
    seq_idx = (torch.arange(70) >= 50).long()[None]
    assert_accurate(partial(linear_attention, seq_idx=seq_idx), make_inputs(gate, 1, 70, 1, 3, 3), "triton")


@pytest.mark.parametrize("impl", ["chunked", "triton"])
@pytest.mark.parametrize("gate", ["scalar", "vector"])
@pytest.mark.parametrize("decay", [0.0, 1e-6, 50.0, 1e4])
def test_accuracy_at_extreme_decays(gate, decay, impl, assert_accurate):
    assert_accurate(linear_attention, small(impl, gate, 100, decay=decay), impl)


@pytest.mark.parametrize("impl", ["chunked", "triton"])
@pytest.mark.parametrize("gate", ["scalar", "vector"])
def test_small_decays_after_a_huge_one(gate, impl, assert_accurate):
    inputs = small(impl, gate, 60, decay=0.01)
    inputs["log_decay"][:, 12] = -1e4
    assert_accurate(linear_attention, inputs, impl)


@pytest.mark.parametrize("impl", ["chunked", "triton"])
def test_channels_of_opposite_extremes(impl, assert_accurate):
    """Every second channel forgets everything at each step, the others nothing: no common reference point would do."""
    inputs = small(impl, "vector", 100)
    inputs["log_decay"][..., ::2] = -50.0
    inputs["log_decay"][..., 1::2] = 0.0
    assert_accurate(linear_attention, inputs, impl)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("gate", GATES)
def test_gradcheck(gate, impl):
    length = 18 if impl == "triton" else 11
    inputs = {n: t.double().requires_grad_() for n, t in make_inputs(gate, 1, length, 1, 2, 1).items()}
    seq_idx = (torch.arange(length) >= 5).long()[None]

    def call(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return linear_attention(**named, seq_idx=seq_idx, chunk_size=4, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=impl == "triton")


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("gate", GATES)
def test_packed_sequences_equal_separate_ones(gate, impl):
    inputs = make_inputs(gate, batch=1, length=36, dtype=torch.float64)
    state = inputs.pop("initial_state").double()
    seq_idx = torch.tensor([[3] * 11 + [1] * 5 + [3] * 20])
    packed, final = linear_attention(**inputs, initial_state=state, seq_idx=seq_idx, chunk_size=16, impl=impl)
    outputs, last = [], None
    for part in (slice(0, 11), slice(11, 16), slice(16, 36)):
        first = state if part.start == 0 else None
        output, last = linear_attention(**{n: t[:, part] for n, t in inputs.items()}, initial_state=first, impl=impl)
        outputs.append(output)
    torch.testing.assert_close(packed, torch.cat(outputs, 1))
    torch.testing.assert_close(final, last)


@pytest.mark.parametrize("impl", ["chunked", "triton"])
@pytest.mark.parametrize("gate", GATES)
def test_other_sequences_get_no_gradient(gate, impl):
    inputs = {n: t.requires_grad_() for n, t in make_inputs(gate, batch=1, length=20).items()}
    seq_idx = torch.tensor([[0] * 9 + [1] * 11])
    output = linear_attention(**inputs, seq_idx=seq_idx, chunk_size=16, impl=impl).output[:, 9:]
    gradients = dict(zip(inputs, torch.autograd.grad(output.square().sum(), list(inputs.values())), strict=True))
    assert not gradients.pop("initial_state").any()
    for name, gradient in gradients.items():
        assert not gradient[:, :9].any(), name
        assert gradient[:, 9:].any(), name


@pytest.mark.parametrize("change", ["q", "k", "v", "log_decay", "initial_state"])
def test_wrong_shape_names_the_argument(change):
    inputs = make_inputs("scalar")
    inputs[change] = inputs[change][..., None, None]
    with pytest.raises(ValueError, match=f"linear_attention: {change} must have shape"):
        linear_attention(**inputs)


def test_wrong_arguments():
    inputs = make_inputs("vector")
    with pytest.raises(ValueError, match=r"log_decay must have shape \(B, T, H, K\)"):
        linear_attention(**inputs | {"log_decay": inputs["log_decay"][..., :3]})
    with pytest.raises(ValueError, match=r"k must have shape .* = \(2, 40, 2, 5\), got \(2, 40, 1, 5\)"):
        linear_attention(**inputs | {"k": inputs["k"][:, :, :1]})
    with pytest.raises(ValueError, match="seq_idx must have shape"):
        linear_attention(**inputs, seq_idx=torch.zeros(2, 39))
    with pytest.raises(ValueError, match="v must be a floating-point tensor"):
        linear_attention(**inputs | {"v": inputs["v"].long()})
    with pytest.raises(ValueError, match="T and chunk_size must be at least 1, got T 40, chunk_size 0"):
        linear_attention(**inputs, chunk_size=0)

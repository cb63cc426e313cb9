from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

from zoo.kernels import available_implementations
from zoo.kernels.delta_rule import delta_rule
from zoo.kernels.linear_attention import linear_attention

GATES = ["none", "head", "channel"]
IMPLS = ["reference", "chunked", "native", "triton"]
FAST = ["chunked", "native", "triton"]


def make_inputs(gate, batch=2, length=40, heads=2, key_dim=5, value_dim=6, dtype=torch.float32, decay=1.0) -> dict:
    generator = torch.Generator().manual_seed(length + heads)
    randn, rand = partial(torch.randn, generator=generator), partial(torch.rand, generator=generator)
    inputs = {
        "q": normalize(randn(batch, length, heads, key_dim), dim=-1).to(dtype),
        "k": normalize(randn(batch, length, heads, key_dim), dim=-1).to(dtype),
        "v": randn(batch, length, heads, value_dim).to(dtype),
        "beta": rand(batch, length, heads).to(dtype),
        "initial_state": randn(batch, heads, key_dim, value_dim),
    }
    if gate == "none":
        return inputs
    shape = (batch, length, heads) if gate == "head" else (batch, length, heads, key_dim)
    return inputs | {"log_decay": (-decay * rand(shape)).to(dtype)}


def small(impl: str, gate: str, length: int, **options) -> dict:
    """Inputs of ``length`` steps, of 19 in one head for the interpreted kernels."""
    return make_inputs(gate, 1, 19, 1, **options) if impl == "triton" else make_inputs(gate, length=length, **options)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("gate", GATES)
def test_is_the_papers_product_of_matrices(gate, impl):
    """S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T with the matrices formed."""
    inputs = {name: t.double() for name, t in make_inputs(gate, 1, 11, 1, 3, 2).items()}
    q, k, v, beta = (inputs[name][0, :, 0] for name in ("q", "k", "v", "beta"))
    decay = torch.ones(11, 1) if gate == "none" else inputs["log_decay"][0, :, 0].exp().view(11, -1)
    state, expected = inputs["initial_state"][0, 0], []
    for t in range(11):
        transition = (torch.eye(3, dtype=torch.float64) - beta[t] * torch.outer(k[t], k[t])) * decay[t]
        state = transition @ state + beta[t] * torch.outer(k[t], v[t])
        expected.append(0.7 * state.mT @ q[t])
    output, final = delta_rule(**inputs, scale=0.7, chunk_size=4, impl=impl)
    torch.testing.assert_close(output[0, :, 0], torch.stack(expected))
    torch.testing.assert_close(final[0, 0], state)
    default = delta_rule(**inputs, impl=impl).output
    torch.testing.assert_close(default[0, :, 0], torch.stack(expected) / 0.7 * 3**-0.5)


@pytest.mark.parametrize("impl", IMPLS)
def test_with_beta_1_a_unit_key_returns_its_last_value(impl):
    k = torch.eye(4, dtype=torch.float64)[torch.tensor([0, 1, 2, 0, 3, 1])][None, :, None]
    v = torch.randn(1, 6, 1, 3, dtype=torch.float64)
    _, state = delta_rule(k, k, v, torch.ones(1, 6, 1), chunk_size=4, impl=impl)
    torch.testing.assert_close(state[0, 0], v[0, [3, 5, 2, 4], 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_with_orthogonal_keys_it_is_linear_attention(impl):
    q, k, v = torch.randn(1, 8, 1, 8), torch.eye(8)[None, :, None], torch.randn(1, 8, 1, 3)
    beta, log_decay = torch.rand(1, 8, 1), -torch.rand(1, 8, 1, 8)
    expected = linear_attention(q, k, v * beta[..., None], log_decay=log_decay)
    for a, b in zip(delta_rule(q, k, v, beta, log_decay=log_decay, chunk_size=4, impl=impl), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 9), (1, 2, 70, 100)], ids=str)
def test_accuracy_over_sizes(gate, shape, impl, assert_accurate):
    batch, heads, key_dim, value_dim = (1, 1, *shape[2:]) if impl == "triton" else shape
    inputs = make_inputs(gate, batch, 19 if impl == "triton" else 90, heads, key_dim, value_dim)
    assert_accurate(partial(delta_rule, chunk_size=16), inputs, impl)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("chunk_size", [1, 24, 64, 300])
def test_accuracy_over_chunk_sizes(gate, chunk_size, assert_accurate):
    seq_idx = (torch.arange(150) >= 90).long()[None]
    call = partial(delta_rule, seq_idx=seq_idx, chunk_size=chunk_size)
    assert_accurate(call, make_inputs(gate, 1, 150, 2, 24, 11), "chunked", "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gate", ["none", "head", pytest.param("channel", marks=pytest.mark.slow)])
def test_accuracy_of_the_longest_triton_chunk(gate, dtype, assert_accurate):
    seq_idx = (torch.arange(70) >= 50).long()[None]
    assert_accurate(partial(delta_rule, seq_idx=seq_idx), make_inputs(gate, 1, 70, 1, 64, 3, dtype), "triton")


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("gate", ["head", "channel"])
@pytest.mark.parametrize("decay", [0.0, 1e-6, 50.0, 1e4])
def test_accuracy_at_extreme_decays(decay, gate, impl, assert_accurate):
    assert_accurate(delta_rule, small(impl, gate, 100, decay=decay), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("gate", ["head", "channel"])
def test_small_decays_after_a_huge_one(gate, impl, assert_accurate):
    inputs = small(impl, gate, 60, decay=0.01)
    inputs["log_decay"][:, 12] = -1e4
    assert_accurate(delta_rule, inputs, impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_accuracy_at_the_ends_of_beta_with_one_key(beta, impl, assert_accurate):
    """Equal keys: the triangular system is as full as it gets."""
    inputs = small(impl, "none", 64)
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]) * 0.9
    inputs["beta"] = torch.full_like(inputs["beta"], beta)
    assert_accurate(delta_rule, inputs, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("gate", GATES)
def test_gradcheck(gate, impl):
    length = 18 if impl == "triton" else 11
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(gate, 1, length, 1, 2, 2).items()}
    seq_idx = (torch.arange(length) >= 5).long()[None]

    def call(*tensors):
        return delta_rule(**dict(zip(inputs, tensors, strict=True)), seq_idx=seq_idx, chunk_size=4, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=impl == "triton")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("gate", GATES)
def test_packed_sequences_equal_separate_ones(gate, impl):
    inputs = make_inputs(gate, batch=1, length=36, dtype=torch.float64)
    state = inputs.pop("initial_state").double()
    seq_idx = torch.tensor([[3] * 11 + [1] * 5 + [3] * 20])
    packed, final = delta_rule(**inputs, initial_state=state, seq_idx=seq_idx, chunk_size=8, impl=impl)
    outputs, last = [], None
    for part in (slice(0, 11), slice(11, 16), slice(16, 36)):
        first = state if part.start == 0 else None
        output, last = delta_rule(**{n: t[:, part] for n, t in inputs.items()}, initial_state=first, impl=impl)
        outputs.append(output)
    torch.testing.assert_close(packed, torch.cat(outputs, 1))
    torch.testing.assert_close(final, last)


@pytest.mark.parametrize("impl", FAST)
def test_other_sequences_get_no_gradient(impl):
    inputs = {n: t.requires_grad_() for n, t in make_inputs("channel", batch=1, length=20).items()}
    seq_idx = torch.tensor([[0] * 9 + [1] * 11])
    output = delta_rule(**inputs, seq_idx=seq_idx, chunk_size=16, impl=impl).output[:, 9:]
    gradients = dict(zip(inputs, torch.autograd.grad(output.square().sum(), list(inputs.values())), strict=True))
    assert not gradients.pop("initial_state").any()
    for name, gradient in gradients.items():
        assert not gradient[:, :9].any(), name
        assert gradient[:, 9:].any(), name


def test_implementations():
    assert available_implementations("delta_rule") == ["native", "chunked", "reference", "triton"]


@pytest.mark.parametrize("change", ["q", "k", "v", "beta", "log_decay", "initial_state"])
def test_wrong_shape_names_the_argument(change):
    inputs = make_inputs("head")
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"delta_rule: {change} must have shape"):
        delta_rule(**inputs)


def test_wrong_arguments():
    inputs = make_inputs("head")
    with pytest.raises(ValueError, match=r"log_decay must have shape \(B, T, H, K\) = \(2, 40, 2, 5\)"):
        delta_rule(**inputs | {"log_decay": torch.zeros(2, 40, 2, 4)})
    with pytest.raises(ValueError, match="seq_idx must have shape"):
        delta_rule(**inputs, seq_idx=torch.zeros(2, 39))
    with pytest.raises(ValueError, match="beta must be a floating-point tensor"):
        delta_rule(**inputs | {"beta": inputs["beta"].long()})
    with pytest.raises(ValueError, match="T and chunk_size must be at least 1, got T 40, chunk_size 0"):
        delta_rule(**inputs, chunk_size=0)

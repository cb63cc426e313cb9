from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

from cases import outputs_and_gradients
from zoo.kernels import available_implementations
from zoo.kernels.delta_rule import delta_rule
from zoo.kernels.generalized_delta_rule import generalized_delta_rule

IMPLS = ["reference", "chunked", "native", "triton"]
FAST = IMPLS[1:]


def steps(impl: str) -> int:
    """Of three chunks of the backward passes, of two for the interpreted kernels; the last one is short."""
    return 19 if impl == "triton" else 35


def make_inputs(batch=2, length=40, heads=2, key_dim=5, value_dim=6, dtype=torch.float32, decay=0.607) -> dict:
    generator = torch.Generator().manual_seed(length + heads)
    randn, rand = partial(torch.randn, generator=generator), partial(torch.rand, generator=generator)
    shape = batch, length, heads, key_dim
    a = -normalize(randn(shape), dim=-1)
    made = {"q": randn(shape), "k": randn(shape), "v": randn(*shape[:3], value_dim), "a": a, "b": -a * rand(shape)}
    made["log_decay"] = -decay * rand(shape)
    made = {name: t.to(dtype) for name, t in made.items()}
    return made | {"initial_state": randn(batch, heads, key_dim, value_dim)}


@pytest.mark.parametrize("impl", IMPLS)
def test_with_one_key_it_is_the_delta_rule(impl):
    """a = k, b = -beta k, and beta k in place of k, without a decay."""
    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    q, k, v, state = randn(2, 19, 2, 5), normalize(randn(2, 19, 2, 5), dim=-1), randn(2, 19, 2, 3), randn(2, 2, 5, 3)
    beta = torch.rand(2, 19, 2, generator=generator, dtype=torch.float64)
    written = beta[..., None] * k
    found = generalized_delta_rule(
        q, written, v, k, -written, log_decay=torch.zeros_like(k), initial_state=state, scale=0.3, impl=impl
    )
    expected = delta_rule(q, k, v, beta, initial_state=state, scale=0.3, impl="reference")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 9), (1, 2, 33, 70), (1, 1, 70, 33)], ids=str)
def test_accuracy_over_sizes(shape, impl, assert_accurate):
    """Of several vectors and blocks of channels, the last one not full."""
    batch, heads, key_dim, value_dim = (1, 1, *shape[2:]) if impl == "triton" else shape
    assert_accurate(generalized_delta_rule, make_inputs(batch, steps(impl), heads, key_dim, value_dim), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("decay", [0.0, 1e-6, 50.0, 1e4])
def test_accuracy_at_extreme_decays(decay, impl, assert_accurate):
    assert_accurate(generalized_delta_rule, make_inputs(1, steps(impl), 1, decay=decay), impl)


@pytest.mark.parametrize("impl", FAST)
def test_small_decays_after_a_huge_one(impl, assert_accurate):
    inputs = make_inputs(1, steps(impl), 1, decay=0.01)
    inputs["log_decay"][:, 12] = -1e4
    assert_accurate(generalized_delta_rule, inputs, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl):
    """With a sequence that begins within a chunk of the backward passes, and one at its first step."""
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(1, 19, 1, 2, 2).items()}
    seq_idx = (torch.arange(19) >= torch.tensor([5, 16])[:, None]).sum(0)[None]

    def call(*tensors):
        return generalized_delta_rule(
            **dict(zip(inputs, tensors, strict=True)), seq_idx=seq_idx, chunk_size=4, impl=impl
        )

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


def test_threads_change_no_bit():
    inputs = make_inputs(3, 20, 3)
    one, two = [], []
    threads = torch.get_num_threads()
    try:
        for count, found in ((1, one), (2, two)):
            torch.set_num_threads(count)
            found += outputs_and_gradients(generalized_delta_rule, inputs, "native").values()
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


def test_implementations():
    assert available_implementations("generalized_delta_rule") == ["native", "chunked", "reference", "triton"]


@pytest.mark.parametrize("change", ["q", "k", "v", "a", "b", "log_decay", "initial_state"])
def test_wrong_shape_names_the_argument(change):
    inputs = make_inputs()
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"generalized_delta_rule: {change} must have shape"):
        generalized_delta_rule(**inputs)

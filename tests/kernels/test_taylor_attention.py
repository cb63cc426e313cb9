from __future__ import annotations

from functools import partial

import pytest
import torch

from zoo.kernels import available_implementations
from zoo.kernels.taylor_attention import taylor_attention, taylor_features

IMPLS = ["reference", "chunked", "triton"]
FAST = ["chunked", "triton"]
SEQ_IDX = torch.tensor([[3] * 5 + [1] * 13 + [2] * 4 + [0] * 19, [4] * 40 + [2]])


def make_inputs(
    batch=2, length=41, heads=2, key_dim=5, value_dim=7, dtype=torch.float32, scale=1.0, state=True
) -> dict:
    generator = torch.Generator().manual_seed(length + heads)
    randn = partial(torch.randn, generator=generator)
    inputs = {
        "q": (scale * randn(batch, length, heads, key_dim)).to(dtype),
        "k": (scale * randn(batch, length, heads, key_dim)).to(dtype),
        "v": randn(batch, length, heads, value_dim).to(dtype),
    }
    if state:  # of 30 earlier steps, in which the keys were small enough for every sum of weights to be positive
        features = taylor_features(0.1 * randn(batch, heads, 30, key_dim))
        values = torch.cat([randn(batch, heads, 30, value_dim), torch.ones(batch, heads, 30, 1)], dim=-1)
        inputs["initial_state"] = features.mT @ values
    return inputs


def quadratic(q, k, v, normalize=True, eps=1e-12, seq_idx=None):
    """The definition: weights 1 + s + s^2 / 2 over the steps so far of the same sequence, each pair by itself."""
    output = torch.zeros_like(v)
    for t in range(q.shape[1]):
        for b in range(q.shape[0]):
            numerator, total = 0.0, 0.0
            for j in range(t + 1):
                if seq_idx is None or seq_idx[b, j] == seq_idx[b, t]:
                    s = (q[b, t] * k[b, j]).sum(-1, keepdim=True) / q.shape[-1] ** 0.5
                    numerator, total = numerator + (1 + s + s**2 / 2) * v[b, j], total + 1 + s + s**2 / 2
            output[b, t] = numerator / (total + eps) if normalize else numerator
    return output


@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_features_multiply_to_the_taylor_polynomial(width):
    q, k = torch.randn(2, 3, 4, width, dtype=torch.float64).unbind(0)
    s = (q * k).sum(-1) / width**0.5
    assert taylor_features(q).shape == (3, 4, (width + 1) * (width + 2) // 2)
    torch.testing.assert_close((taylor_features(q) * taylor_features(k)).sum(-1), 1 + s + s**2 / 2)


def test_layout_of_the_features():
    x = torch.tensor([3.0, 5.0], dtype=torch.float64)
    half, root = 0.5**0.5, 2**0.25
    expected = [1, 3 / root, 5 / root, half * 9 / root**2, 15 / root**2, half * 25 / root**2]
    torch.testing.assert_close(taylor_features(x), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_is_the_definition(impl, normalize, packed):
    q, k, v = make_inputs(dtype=torch.float64, state=False).values()
    options = {"normalize": normalize, "eps": 0.3, "seq_idx": SEQ_IDX if packed else None}
    found = taylor_attention(q, k, v, **options, chunk_size=16, impl=impl).output
    torch.testing.assert_close(found, quadratic(q, k, v, **options))


@pytest.mark.parametrize("impl", IMPLS)
def test_final_state_is_the_sum_of_outer_products(impl):
    q, k, v, before = make_inputs(dtype=torch.float64).values()
    values = torch.nn.functional.pad(v, [0, 1], value=1.0)
    added = torch.einsum("bthf,bthv->bhfv", taylor_features(k), values)
    found = taylor_attention(q, k, v, initial_state=before, chunk_size=16, impl=impl).final_state
    torch.testing.assert_close(found, before.double() + added)
    found = taylor_attention(q, k, v, initial_state=before, seq_idx=SEQ_IDX[:1].expand(2, -1), impl=impl).final_state
    last = torch.einsum("bthf,bthv->bhfv", taylor_features(k[:, 22:]), values[:, 22:])
    torch.testing.assert_close(found, last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 1, 2, 3, 4), (3, 37, 5, 7, 3), (1, 150, 2, 16, 64), (2, 64, 1, 24, 33)], ids=str
)
def test_accuracy_over_dtypes_and_sizes(dtype, shape, assert_accurate):
    assert_accurate(partial(taylor_attention, chunk_size=32), make_inputs(*shape, dtype), "chunked")


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.float32, (1, 2, 1, 1, 1)),
        (torch.float64, (1, 33, 1, 7, 3)),
        (torch.bfloat16, (1, 18, 2, 4, 5)),
        (torch.float32, (1, 20, 1, 17, 18)),  # six tiles of features
        (torch.float32, (1, 17, 1, 4, 70)),  # two tiles of values
    ],
    ids=str,
)
def test_accuracy_of_triton(dtype, shape, assert_accurate):
    assert_accurate(partial(taylor_attention, chunk_size=16), make_inputs(*shape, dtype), "triton")


@pytest.mark.parametrize("impl", FAST)
def test_accuracy_with_every_option(impl, assert_accurate):
    call = partial(taylor_attention, eps=0.1, seq_idx=SEQ_IDX, chunk_size=16)
    assert_accurate(call, make_inputs(heads=1), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_accuracy_at_small_and_large_scores(impl, scale, assert_accurate):
    assert_accurate(partial(taylor_attention, chunk_size=16), make_inputs(1, 33, 1, scale=scale, state=False), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl):
    """Over two chunks (of 16 steps at least in Triton) and three sequences."""
    inputs = {n: t.double().requires_grad_() for n, t in make_inputs(1, 18, 1, 2, 2).items()}
    seq_idx = torch.tensor([[0] * 15 + [1] * 2 + [0]])

    def call(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return taylor_attention(**named, seq_idx=seq_idx, chunk_size=7, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=impl == "triton")


@pytest.mark.parametrize("impl", FAST)
def test_gradients_reach_over_chunks(impl):
    """The first step's key and value and the initial state from the last output alone, against the reference."""
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(1, 50, 1, 3, 3).items()}
    found, expected = (
        torch.autograd.grad(
            taylor_attention(**inputs, chunk_size=16, impl=i).output[:, -1].sin().sum(), list(inputs.values())
        )
        for i in (impl, "reference")
    )
    assert expected[1][0, 0].abs().min() > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_chunk_size_does_not_matter():
    inputs = make_inputs(dtype=torch.float64)
    expected = taylor_attention(**inputs, impl="reference")
    for chunk_size in (1, 7, 41, 256):
        for a, b in zip(taylor_attention(**inputs, chunk_size=chunk_size), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_equal_separate_ones(impl):
    inputs = make_inputs(1, 40, dtype=torch.float64)
    state = inputs.pop("initial_state")
    call = partial(taylor_attention, chunk_size=16, impl=impl)
    packed, final = call(**inputs, initial_state=state, seq_idx=torch.tensor([[3] * 21 + [1] * 19]))
    first, _ = call(**{name: t[:, :21] for name, t in inputs.items()}, initial_state=state)
    second, last = call(**{name: t[:, 21:] for name, t in inputs.items()})
    torch.testing.assert_close(packed, torch.cat([first, second], 1))
    torch.testing.assert_close(final, last)


def test_nothing_is_kept_for_the_gradient_but_the_inputs():
    """And the two outputs that the division by the sum of weights needs: no state, no features."""
    inputs = {name: t.requires_grad_() for name, t in make_inputs(1, 600, 1, 16, 8).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        taylor_attention(**inputs)
    numbers = sum(t.numel() for t in inputs.values())
    assert sum(kept) <= numbers + 2 * 600 * (8 + 1) + 600


def test_fast_on_the_cpu_without_being_told():
    assert available_implementations("taylor_attention")[0] == "chunked"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("q", r"q must have shape \(B, T, H, K\)"),
        ("k", r"k must have shape \(B, T, H, K\)"),
        ("v", r"v must have shape \(B, T, H, V\)"),
        (
            "initial_state",
            r"initial_state must have shape \(B, H, \(K \+ 1\)\(K \+ 2\) / 2, V \+ 1\) = \(2, 2, 21, 8\)",
        ),
        ("seq_idx", r"seq_idx must have shape \(B, T\)"),
    ],
)
def test_wrong_shape_names_the_argument(name, message):
    inputs = make_inputs() | {"seq_idx": SEQ_IDX}
    inputs[name] = inputs[name][..., None]
    with pytest.raises(ValueError, match=f"taylor_attention: {message}"):
        taylor_attention(**inputs)


@pytest.mark.parametrize("name", ["q", "k", "v", "initial_state"])
def test_wrong_dtype_names_the_argument(name):
    inputs = make_inputs()
    inputs[name] = inputs[name].long()
    with pytest.raises(ValueError, match=f"taylor_attention: {name} must be a floating-point tensor"):
        taylor_attention(**inputs)


@pytest.mark.parametrize(("option", "value"), [("chunk_size", 0), ("eps", -1.0)])
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"at least 1 and eps at least 0, got .*{option} {value}"):
        taylor_attention(**make_inputs(), **{option: value})


def test_no_steps():
    with pytest.raises(ValueError, match="got T 0"):
        taylor_attention(**make_inputs(length=0))

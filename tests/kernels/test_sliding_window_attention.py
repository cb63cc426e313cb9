from __future__ import annotations

from functools import partial
from math import exp

import pytest
import torch
import torch.nn.functional as F

from zoo.kernels import available_implementations
from zoo.kernels.sliding_window_attention import sliding_window_attention

IMPLS = ["reference", "blocked", "triton"]
FAST = IMPLS[1:]


def make_inputs(batch=1, length=40, keys=None, heads=4, groups=2, dim=8, value_dim=6, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(length + heads)
    randn = partial(torch.randn, generator=generator)
    keys = keys or length
    return {
        "q": randn(batch, length, heads, dim).to(dtype),
        "k": randn(batch, keys, groups, dim).to(dtype),
        "v": randn(batch, keys, groups, value_dim).to(dtype),
    }


def by_definition(q, k, v, window, sinks=0, seq_idx=None):
    """One query, one key at a time."""
    output = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    cached = k.shape[1] - q.shape[1]
    for b, t, h in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        group, weights = h // (q.shape[2] // k.shape[2]), {}
        for j in range(cached + t + 1):
            same = seq_idx is None or len(set(seq_idx[b, j : cached + t + 1].tolist())) == 1
            if same and (j > cached + t - window or j < sinks):
                weights[j] = exp(q[b, t, h] @ k[b, j, group] / q.shape[-1] ** 0.5)
        for j, weight in weights.items():
            output[b, t, h] += weight / sum(weights.values()) * v[b, j, group]
    return output


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("options", [{"window": 1}, {"window": 4}, {"window": 3, "sinks": 2}, {"window": 99}], ids=str)
def test_definition(impl, options):
    inputs = make_inputs(2, 7, 9, dtype=torch.float64)
    found = sliding_window_attention(**inputs, **options, impl=impl)
    torch.testing.assert_close(found, by_definition(**inputs, **options))


@pytest.mark.parametrize("impl", IMPLS)
def test_definition_of_packed_sequences(impl):
    inputs = make_inputs(2, 8, 11, dtype=torch.float64)
    options = {"window": 4, "seq_idx": torch.tensor([[0] * 2 + [1] * 4 + [0] * 5, [0] * 10 + [7]])}
    found = sliding_window_attention(**inputs, **options, impl=impl)
    torch.testing.assert_close(found, by_definition(**inputs, **options))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_window_over_everything_is_causal_attention(impl):
    inputs = make_inputs(2, 150, heads=2, groups=1, dtype=torch.float64)
    q, k, v = (t.transpose(1, 2) for t in inputs.values())
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(sliding_window_attention(**inputs, window=150, impl=impl), expected)


@pytest.mark.parametrize(("length", "keys"), [(1, 1), (63, 63), (64, 64), (65, 300), (301, 301), (600, 610)])
@pytest.mark.parametrize(
    "options", [{"window": 1}, {"window": 70}, {"window": 300}, {"window": 30, "sinks": 7}], ids=str
)
def test_accuracy_of_blocked(length, keys, options, assert_accurate):
    assert_accurate(partial(sliding_window_attention, **options), make_inputs(2, length, keys), "blocked")


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 150, 150, 1, 1), {"window": 150}),
        ((1, 140, 150, 2, 1), {"window": 40}),
        ((1, 40, 240, 2, 2), {"window": 90, "sinks": 70}),
        ((1, 2, 300, 2, 1, 20, 17), {"window": 280}),
    ],
    ids=str,
)
def test_accuracy_of_triton_over_several_tiles(shape, options, assert_accurate):
    assert_accurate(partial(sliding_window_attention, **options), make_inputs(*shape), "triton")


@pytest.mark.parametrize(("window", "sinks"), [(127, 0), (128, 64), (129, 1), (130, 0)])
def test_windows_that_end_beside_a_tile(window, sinks):
    leaves = [t.requires_grad_() for t in make_inputs(1, 200, 200, 1, 1, dtype=torch.float64).values()]
    found = []
    for impl in ("reference", "triton"):
        output = sliding_window_attention(*leaves, window=window, sinks=sinks, impl=impl)
        found.append((output, *torch.autograd.grad(output.sin().sum(), leaves)))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("impl", FAST)
def test_accuracy_of_packed_sequences_over_several_tiles(impl, assert_accurate):
    seq_idx = torch.tensor([0] * 20 + [1] * 110 + [2] * 21)[None]
    call = partial(sliding_window_attention, window=60, seq_idx=seq_idx)
    assert_accurate(call, make_inputs(1, 140, 151, 1, 1), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("factor", [1e-4, 30.0])
def test_accuracy_at_extreme_scores(impl, factor, assert_accurate):
    inputs = make_inputs(heads=2)
    assert_accurate(partial(sliding_window_attention, window=12, scale=factor), inputs, impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_accuracy_in_half_precision(impl, dtype, assert_accurate):
    inputs = make_inputs(2, 70, 90, 1, 1, 16, 16, dtype)
    assert_accurate(partial(sliding_window_attention, window=50), inputs, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sinks", [0, 2])
def test_gradcheck(impl, sinks):
    inputs = [t.double().requires_grad_() for t in make_inputs(1, 5, 7, 2, 1, 2, 3).values()]
    seq_idx = None if sinks else torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    call = partial(sliding_window_attention, window=3, sinks=sinks, seq_idx=seq_idx, impl=impl)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=impl == "triton")


@pytest.mark.parametrize("options", [{"window": 6}, {"window": 6, "sinks": 2}, {"window": 50}], ids=str)
def test_token_by_token_is_the_whole(options):
    inputs = make_inputs(2, 20, dtype=torch.float64)
    whole = sliding_window_attention(**inputs, **options)
    q, k, v = inputs.values()
    steps = [sliding_window_attention(q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1], **options) for t in range(20)]
    torch.testing.assert_close(torch.cat(steps, 1), whole)


def test_one_packed_query():
    inputs, seq_idx = make_inputs(1, 20, dtype=torch.float64), (torch.arange(20) // 8)[None]
    whole = sliding_window_attention(**inputs, window=6, seq_idx=seq_idx)
    last = sliding_window_attention(inputs["q"][:, -1:], inputs["k"], inputs["v"], window=6, seq_idx=seq_idx)
    torch.testing.assert_close(last, whole[:, -1:])


@pytest.mark.parametrize("impl", IMPLS)
def test_packed_sequences_equal_separate_ones(impl):
    inputs = make_inputs(1, 30, dtype=torch.float64)
    seq_idx = torch.tensor([[3] * 11 + [1] * 19])
    packed = sliding_window_attention(**inputs, window=8, seq_idx=seq_idx, impl=impl)
    parts = [{n: t[:, part] for n, t in inputs.items()} for part in (slice(0, 11), slice(11, 30))]
    separate = [sliding_window_attention(**part, window=8, impl=impl) for part in parts]
    torch.testing.assert_close(packed, torch.cat(separate, 1))


def test_mixed_dtypes():
    inputs = make_inputs()
    inputs["q"] = inputs["q"].bfloat16()
    for length in (40, 1):
        inputs["q"] = inputs["q"][:, -length:]
        expected = sliding_window_attention(inputs["q"].float(), inputs["k"], inputs["v"], window=9)
        for impl in IMPLS:
            found = sliding_window_attention(**inputs, window=9, impl=impl)
            assert found.dtype == torch.bfloat16
            torch.testing.assert_close(found, expected.bfloat16())


def test_blocked_is_preferred_on_the_cpu():
    assert available_implementations("sliding_window_attention")[0] == "blocked"


@pytest.mark.parametrize("change", ["q", "k", "v", "seq_idx"])
def test_wrong_shape_names_the_argument(change):
    inputs = make_inputs() | {"seq_idx": torch.zeros(1, 40)}
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"sliding_window_attention: {change} must have shape"):
        sliding_window_attention(**inputs, window=4)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"keys": 39}, {"window": 4}, "at most S.*T 40, S 39"),
        ({"groups": 3}, {"window": 4}, "heads of k must divide those of q.*3 heads of k, 4 heads of q"),
        ({}, {"window": 0}, "window must be at least 1.*window 0"),
        ({}, {"window": 4, "sinks": -1}, "sinks at least 0.*sinks -1"),
        ({}, {"window": 4, "sinks": 1, "seq_idx": torch.zeros(1, 40)}, "0 with seq_idx.*sinks 1 with seq_idx"),
    ],
)
def test_wrong_values(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        sliding_window_attention(**make_inputs(**sizes), **options)


def test_integers_are_refused():
    inputs = make_inputs()
    inputs["v"] = inputs["v"].long()
    with pytest.raises(ValueError, match="v must be a floating-point tensor"):
        sliding_window_attention(**inputs, window=4)

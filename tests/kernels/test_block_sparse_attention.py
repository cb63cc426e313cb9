from __future__ import annotations

from functools import partial
from math import exp

import pytest
import torch
import torch.nn.functional as F

from zoo.kernels import available_implementations
from zoo.kernels.block_sparse_attention import block_sparse_attention

IMPLS = ["reference", "gathered", "triton"]
FAST = IMPLS[1:]


def make_inputs(
    batch=2, length=40, keys=None, heads=4, groups=2, dim=8, value_dim=6, dtype=torch.float32, size=16, masks=(1, 1)
) -> dict:
    generator = torch.Generator().manual_seed(length + heads)
    randn = partial(torch.randn, generator=generator)
    keys = keys or length
    blocks = -(-length // size), -(-keys // size)
    return {
        "q": randn(batch, length, heads, dim).to(dtype),
        "k": randn(batch, keys, groups, dim).to(dtype),
        "v": randn(batch, keys, groups, value_dim).to(dtype),
        "block_mask": torch.rand(*masks, *blocks, generator=generator) < 0.6,
    }


def by_definition(q, k, v, block_mask, block_size, causal):
    """One query, one key at a time."""
    output = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    mask = block_mask.expand(q.shape[0], q.shape[2], -1, -1)
    for b, t, h in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        group, weights = h // (q.shape[2] // k.shape[2]), {}
        for j in range(k.shape[1]):
            future = causal and j > t + k.shape[1] - q.shape[1]
            if mask[b, h, t // block_size, j // block_size] and not future:
                weights[j] = exp(q[b, t, h] @ k[b, j, group] / q.shape[-1] ** 0.5)
        for j, weight in weights.items():
            output[b, t, h] += weight / sum(weights.values()) * v[b, j, group]
    return output


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("masks", [(1, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_definition(impl, masks, causal):
    inputs = make_inputs(2, 8, 11, size=3, masks=masks, dtype=torch.float64)
    options = {"block_size": 3, "causal": causal}
    found = block_sparse_attention(**inputs, **options, impl=impl)
    torch.testing.assert_close(found, by_definition(**inputs, **options))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [False, True])
def test_every_block_is_full_attention(impl, causal):
    inputs = make_inputs(1, 90, heads=2, groups=1, dtype=torch.float64)
    inputs["block_mask"] = torch.ones_like(inputs["block_mask"])
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)
    found = block_sparse_attention(**inputs, block_size=16, causal=causal, impl=impl)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [False, True])
def test_queries_that_see_nothing_give_zeros(impl, causal):
    """Query block 1 sees no key; when causal, block 0 sees only the future, and key block 2 is seen by nobody."""
    inputs = make_inputs(1, 48, heads=2, groups=1)
    mask = torch.tensor([[False, causal, False], [False, False, False], [True, True, False]])
    mask[0, 0] = not causal
    inputs["block_mask"] = mask[None, None]
    leaves = {n: inputs[n].requires_grad_() for n in "qkv"}
    output = block_sparse_attention(**inputs, block_size=16, causal=causal, impl=impl)
    dq, dk, dv = torch.autograd.grad(output.sin().sum(), list(leaves.values()))
    unseen = slice(0 if causal else 16, 32)
    for tensor in (output, dq):
        assert torch.equal(tensor[:, unseen], torch.zeros_like(tensor[:, unseen]))
        assert tensor[:, 32:].abs().amin() > 0
    for tensor in (dk, dv):
        assert torch.equal(tensor[:, 32:], torch.zeros_like(tensor[:, 32:]))
        assert tensor.isfinite().all() and tensor[:, :32].abs().amin() > 0


@pytest.mark.parametrize("impl", IMPLS)
def test_no_block_at_all(impl):
    inputs = make_inputs(1, 20, heads=2, groups=1)
    inputs["block_mask"] = torch.zeros_like(inputs["block_mask"])
    leaves = [inputs[n].requires_grad_() for n in "qkv"]
    output = block_sparse_attention(**inputs, block_size=16, impl=impl)
    for tensor in (output, *torch.autograd.grad(output.sum(), leaves)):
        assert torch.equal(tensor, torch.zeros_like(tensor))


@pytest.mark.parametrize(("length", "keys"), [(1, 1), (63, 63), (64, 300), (301, 301)])
@pytest.mark.parametrize("masks", [(1, 1), (2, 1), (1, 4), (2, 4)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_accuracy_of_gathered(length, keys, masks, causal, assert_accurate):
    inputs = make_inputs(2, length, keys, size=20, masks=masks)
    assert_accurate(partial(block_sparse_attention, block_size=20, causal=causal), inputs, "gathered")


@pytest.mark.parametrize(
    ("size", "length", "keys", "masks", "causal"),
    [
        (16, 40, 60, (1, 1), False),
        (16, 45, 45, (1, 2), True),
        (20, 50, 30, (2, 1), False),
        (80, 90, 110, (1, 2), True),
        (140, 140, 160, (1, 1), False),
    ],
)
def test_accuracy_of_triton_over_several_tiles(size, length, keys, masks, causal, assert_accurate):
    inputs = make_inputs(masks[0], length, keys, 2, 1, size=size, masks=masks)
    assert_accurate(partial(block_sparse_attention, block_size=size, causal=causal), inputs, "triton")


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("factor", [1e-4, 30.0])
def test_accuracy_at_extreme_scores(impl, factor, assert_accurate):
    assert_accurate(
        partial(block_sparse_attention, block_size=16, scale=factor), make_inputs(1, 30, heads=2, groups=1), impl
    )


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_accuracy_in_half_precision(impl, dtype, assert_accurate):
    inputs = make_inputs(1, 70, 90, 2, 1, 16, 16, dtype, size=64)
    assert_accurate(partial(block_sparse_attention, block_size=64, causal=True), inputs, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl):
    inputs = make_inputs(1, 5, 6, 2, 1, 2, 3, torch.float64, size=2, masks=(1, 2))
    mask = inputs.pop("block_mask")
    mask[:, :, 1] = False

    def call(q, k, v):
        return block_sparse_attention(q, k, v, mask, block_size=2, causal=True, impl=impl)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in inputs.values()], fast_mode=impl == "triton")


def test_gathered_is_preferred_on_the_cpu():
    assert available_implementations("block_sparse_attention")[0] == "gathered"


@pytest.mark.parametrize("change", ["q", "k", "v", "block_mask"])
def test_wrong_shape_names_the_argument(change):
    inputs = make_inputs()
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"block_sparse_attention: {change} must have shape"):
        block_sparse_attention(**inputs, block_size=16)


@pytest.mark.parametrize(
    "mask", [torch.ones(3, 3), torch.ones(1, 3, 3, 3), torch.ones(1, 1, 3, 2)], ids=lambda t: str(t.shape)
)
def test_wrong_mask_shape(mask):
    with pytest.raises(ValueError, match="block_mask must have shape"):
        block_sparse_attention(**make_inputs() | {"block_mask": mask.bool()}, block_size=16)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"keys": 39}, {"causal": True}, "S must be at least T when causal, got T 40, S 39"),
        ({"groups": 3}, {}, "heads of k must divide those of q.*3 heads of k, 4 heads of q"),
        ({}, {"block_size": 0}, "block_size must be at least 1.*block_size 0"),
    ],
)
def test_wrong_values(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(**make_inputs(**sizes), **{"block_size": 16} | options)


def test_wrong_dtypes():
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"block_mask must be boolean, got torch\.float32"):
        block_sparse_attention(**inputs | {"block_mask": inputs["block_mask"].float()}, block_size=16)
    with pytest.raises(ValueError, match="k must be a floating-point tensor"):
        block_sparse_attention(**inputs | {"k": inputs["k"].long()}, block_size=16)

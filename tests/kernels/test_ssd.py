from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch

from zoo.kernels import available_implementations, selective_scan, ssd

FAST = ["chunked", "native"]
# Under Triton's interpreter a program takes milliseconds: its own, smaller cases.
TRITON = [name for name in available_implementations("ssd") if name == "triton"]


def make_inputs(batch=2, length=40, heads=4, dim=6, state=5, groups=2, dtype=torch.float32, dt_scale=0.5) -> dict:
    generator = torch.Generator().manual_seed(length + heads)
    randn = partial(torch.randn, generator=generator)
    return {
        "x": randn(batch, length, heads, dim).to(dtype),
        "dt": (dt_scale * torch.rand(batch, length, heads, generator=generator)).to(dtype),
        "A": -torch.rand(heads, generator=generator) * 16,
        "B": randn(batch, length, groups, state).to(dtype),
        "C": randn(batch, length, groups, state).to(dtype),
        "initial_state": randn(batch, heads, dim, state),
    }


def test_is_the_selective_scan_with_one_decay_a_head():
    inputs = make_inputs(dtype=torch.float64)
    inputs["A"], inputs["initial_state"] = inputs["A"].double(), inputs["initial_state"].double()
    expected, final = selective_scan(
        inputs["x"].flatten(2),
        inputs["dt"].repeat_interleave(6, dim=2),
        inputs["A"].repeat_interleave(6)[:, None].expand(-1, 5),
        inputs["B"],
        inputs["C"],
        initial_state=inputs["initial_state"].flatten(1, 2),
        impl="reference",
    )
    for impl in ("reference", *FAST, *TRITON):
        output, state = ssd(**inputs, impl=impl)
        torch.testing.assert_close(output.flatten(2), expected)
        torch.testing.assert_close(state.flatten(1, 2), final)


def test_is_masked_attention():
    """The quadratic form of the paper: y = (L o C B^T) (dt x)."""
    x, dt, A, B, C, _ = make_inputs(1, 20, 1, 3, 4, 1, torch.float64).values()
    total = (dt[0, :, 0] * A.double()).cumsum(0)
    L = (total[:, None] - total[None, :]).exp().tril()
    expected = (L * (C[0, :, 0] @ B[0, :, 0].mT)) @ (dt[0] * x[0, :, 0])
    torch.testing.assert_close(ssd(x, dt, A, B, C, chunk_size=7).output[0, :, 0], expected)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 500, 1000])
def test_accuracy_over_lengths(impl, length, assert_accurate):
    assert_accurate(partial(ssd, chunk_size=16), make_inputs(length=length), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 6, 5, 7, 3), (2, 4, 8, 3, 4), (4, 10, 3, 5, 1)], ids=str)
def test_accuracy_over_dtypes_and_sizes(impl, dtype, shape, assert_accurate):
    batch, heads, dim, state, groups = shape
    inputs = make_inputs(batch, 37, heads, dim, state, groups, dtype)
    assert_accurate(partial(ssd, chunk_size=8), inputs, impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_size", [24, 64, 200])
def test_accuracy_of_large_heads_and_states(impl, dtype, chunk_size, assert_accurate):
    seq_idx = (torch.arange(150) >= 90).long()[None]
    call = partial(ssd, seq_idx=seq_idx, chunk_size=chunk_size)
    assert_accurate(call, make_inputs(1, 150, 3, 70, 100, 1, dtype), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dt_scale", [1e-6, 50.0])
def test_accuracy_at_extreme_decays(impl, dt_scale, assert_accurate):
    assert_accurate(ssd, make_inputs(dt_scale=dt_scale), impl)


@pytest.mark.parametrize("impl", FAST)
def test_small_decays_after_a_huge_one(impl, assert_accurate):
    inputs = make_inputs(length=60)
    inputs["dt"] = inputs["dt"] * 0.01
    inputs["dt"][:, 20] = 1e4
    assert_accurate(ssd, inputs, impl)


@pytest.mark.parametrize("impl", FAST)
def test_accuracy_with_every_option(impl, assert_accurate):
    inputs = make_inputs() | {"D": torch.randn(4), "dt_bias": torch.randn(4)}
    seq_idx = torch.tensor([[0] * 7 + [1] * 10 + [2] * 23, [4] * 39 + [2]])
    call = partial(ssd, dt_softplus=True, dt_limit=(0.3, 0.8), seq_idx=seq_idx, chunk_size=16)
    assert_accurate(call, inputs, impl)


@pytest.mark.parametrize("impl", TRITON)
@pytest.mark.parametrize(
    ("dtype", "chunk_size", "sizes"),  # batch, length, heads, head_dim, state, groups
    [
        (torch.float64, 16, (2, 19, 2, 6, 5, 2)),
        (torch.float32, 16, (1, 37, 2, 6, 5, 1)),
        (torch.bfloat16, 16, (1, 37, 2, 6, 5, 1)),
        (torch.float16, 16, (1, 20, 2, 6, 5, 1)),
        (torch.float64, 64, (1, 40, 1, 34, 35, 1)),  # two tiles of time, of P and of N
        (torch.float32, 64, (1, 70, 1, 66, 67, 1)),
        (torch.bfloat16, 64, (1, 70, 1, 66, 7, 1)),
        (torch.bfloat16, 7, (1, 34, 1, 3, 130, 1)),
    ],
    ids=str,
)
def test_accuracy_of_triton(impl, dtype, chunk_size, sizes, assert_accurate):
    seq_idx = (torch.arange(sizes[1]) >= 0.8 * sizes[1]).long().expand(sizes[:2])
    assert_accurate(partial(ssd, seq_idx=seq_idx, chunk_size=chunk_size), make_inputs(*sizes, dtype), impl)


@pytest.mark.parametrize("impl", TRITON)
@pytest.mark.parametrize("setting", ["tiny steps", "large steps", "one huge step", "mixed dtypes", "every option"])
def test_accuracy_of_triton_at_extremes(impl, setting, assert_accurate):
    inputs, options = make_inputs(1, 40, 2, 4, 3, 1), {}
    if setting == "tiny steps":
        inputs["dt"] = inputs["dt"] * 2e-6
    elif setting == "large steps":
        inputs["dt"] = inputs["dt"] * 100
    elif setting == "one huge step":
        inputs["dt"] = inputs["dt"] * 0.01
        inputs["dt"][:, 20] = 1e4
    elif setting == "mixed dtypes":
        inputs |= {"x": inputs["x"].bfloat16(), "B": inputs["B"].half(), "dt": inputs["dt"].half()}
    else:
        inputs |= {"D": torch.randn(2), "dt_bias": torch.randn(2)}
        seq_idx = torch.tensor([[0] * 7 + [1] * 9 + [2] * 3 + [5] * 21])
        options = {"dt_softplus": True, "dt_limit": (0.3, 0.8), "seq_idx": seq_idx, "chunk_size": 16}
    assert_accurate(partial(ssd, **options), inputs, impl)


@pytest.mark.parametrize("impl", TRITON)
def test_triton_sums_over_heads_in_one_program(impl, assert_accurate, monkeypatch):
    monkeypatch.setattr(import_module("zoo.kernels.ssd.triton"), "PROGRAMS", 1)
    assert_accurate(partial(ssd, chunk_size=16), make_inputs(1, 20, 6, 3, 4, 2), impl)


@pytest.mark.parametrize("impl", TRITON)
def test_triton_gradcheck(impl):
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(1, 18, 2, 2, 2, 1).items()}
    seq_idx = torch.tensor([[0] * 5 + [1] * 13])

    def call(*tensors):
        return ssd(**dict(zip(inputs, tensors, strict=True)), seq_idx=seq_idx, chunk_size=16, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_gradcheck(impl):
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(1, 11, 2, 2, 2, 1).items()}
    seq_idx = torch.tensor([[0] * 5 + [1] * 6])

    def call(*tensors):
        return ssd(**dict(zip(inputs, tensors, strict=True)), seq_idx=seq_idx, chunk_size=4, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


def test_chunk_size_does_not_matter():
    inputs = make_inputs(length=50)
    expected = ssd(**inputs, impl="reference")
    for chunk_size in (1, 7, 50, 256):
        for a, b in zip(ssd(**inputs, chunk_size=chunk_size), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_split_and_resume(impl):
    inputs = make_inputs(length=50, dtype=torch.float64)
    A, state = inputs.pop("A"), inputs.pop("initial_state").double()
    whole, final = ssd(**inputs, A=A, initial_state=state, impl=impl, chunk_size=16)
    parts = []
    for part in (slice(0, 17), slice(17, 18), slice(18, 50)):
        piece = {name: t[:, part] for name, t in inputs.items()}
        output, state = ssd(**piece, A=A, initial_state=state, impl=impl, chunk_size=16)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, final)


def test_packed_sequences_equal_separate_ones():
    inputs = make_inputs(batch=1, length=30)
    A, state = inputs.pop("A"), inputs.pop("initial_state")
    seq_idx = torch.tensor([[3] * 11 + [1] * 19])
    packed, final = ssd(**inputs, A=A, initial_state=state, seq_idx=seq_idx, chunk_size=8)
    first, _ = ssd(**{k: v[:, :11] for k, v in inputs.items()}, A=A, initial_state=state)
    second, last = ssd(**{k: v[:, 11:] for k, v in inputs.items()}, A=A)
    torch.testing.assert_close(packed, torch.cat([first, second], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(final, last, atol=1e-5, rtol=1e-5)


def test_native_is_preferred_and_deterministic():
    assert available_implementations("ssd")[0] == "native"
    inputs = {name: t.requires_grad_() for name, t in make_inputs(length=100).items()}
    strided = inputs | {"x": inputs["x"].mT.contiguous().mT}
    first, second = (
        [*ssd(**i), *torch.autograd.grad(ssd(**i).output.square().sum(), list(inputs.values()))]
        for i in (inputs, strided)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by opcheck itself
@pytest.mark.parametrize("impl", FAST)
def test_operator_is_well_formed(impl):
    tensors = [t.requires_grad_() for t in make_inputs(length=20).values()]
    torch.library.opcheck(torch.ops.zoo.ssd.default, (*tensors, None, 8, impl))


def test_compiles_as_one_graph():
    inputs = make_inputs()
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(**inputs), ssd(**inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("change", ["x", "dt", "A", "B", "C", "initial_state"])
def test_wrong_shape_names_the_argument(change):
    inputs = make_inputs()
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"ssd: {change} must have shape"):
        ssd(**inputs)


def test_groups_must_divide_heads():
    with pytest.raises(ValueError, match="groups must divide the heads"):
        ssd(**make_inputs(heads=4, groups=3))

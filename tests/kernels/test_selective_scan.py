from __future__ import annotations

from functools import partial

import pytest
import torch

from zoo.kernels import available_implementations, selective_scan

FAST = ["chunked", "native"]
TRITON = [name for name in available_implementations("selective_scan") if name == "triton"]


@pytest.fixture
def short_chunks(monkeypatch):
    """Triton's kernels with several chunks, tiles and blocks of channels in inputs that its interpreter can take."""
    triton = pytest.importorskip("zoo.kernels.selective_scan.triton")
    monkeypatch.setattr(triton, "FORWARD", triton.FORWARD | {"chunk": 4, "channels": 4})
    monkeypatch.setattr(triton, "BACKWARD", triton.BACKWARD | {"chunk": 8, "channels": 4})


def make_inputs(batch=2, length=40, dim=10, state=4, groups=1, dtype=torch.float32, dt_scale=0.5) -> dict:
    generator = torch.Generator().manual_seed(length + dim)
    randn = partial(torch.randn, generator=generator)
    return {
        "x": randn(batch, length, dim).to(dtype),
        "dt": (dt_scale * torch.rand(batch, length, dim, generator=generator)).to(dtype),
        "A": -torch.rand(dim, state, generator=generator) * 4,
        "B": randn(batch, length, groups, state).to(dtype),
        "C": randn(batch, length, groups, state).to(dtype),
        "initial_state": randn(batch, dim, state),
    }


def test_definition():
    """The recurrence written out with scalars."""
    inputs = make_inputs(batch=1, length=5, dim=2, state=3)
    output, final = selective_scan(**inputs, impl="reference")
    for d in range(2):
        h = inputs["initial_state"][0, d].tolist()
        for t in range(5):
            dt, x = inputs["dt"][0, t, d], inputs["x"][0, t, d]
            for n in range(3):
                h[n] = torch.exp(dt * inputs["A"][d, n]) * h[n] + dt * x * inputs["B"][0, t, 0, n]
            y = sum(inputs["C"][0, t, 0, n] * h[n] for n in range(3))
            torch.testing.assert_close(output[0, t, d], torch.as_tensor(y))
        torch.testing.assert_close(final[0, d], torch.stack([torch.as_tensor(v) for v in h]))


def test_unit_steps_without_decay_are_a_running_sum():
    x = torch.randn(1, 50, 3, dtype=torch.float64)
    ones = torch.ones(1, 50, 1, 1, dtype=torch.float64)
    for impl in ("reference", *FAST, *TRITON):
        y, _ = selective_scan(x, torch.ones_like(x), torch.zeros(3, 1, dtype=torch.float64), ones, ones, impl=impl)
        torch.testing.assert_close(y, x.cumsum(1))


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 100, 500])
def test_accuracy_over_lengths(impl, length, assert_accurate):
    assert_accurate(selective_scan, make_inputs(length=length), impl)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 5), (2, 195, 3)], ids=str)
def test_accuracy_over_dtypes_and_groups(impl, dtype, shape, assert_accurate):
    batch, dim, groups = shape[0], shape[1], 1 if shape[1] % shape[2] else shape[2]
    assert_accurate(selective_scan, make_inputs(batch, 37, dim, 5, groups, dtype), impl)


@pytest.mark.parametrize("impl", TRITON)
@pytest.mark.parametrize("shape", [(2, 2, 1, 1, 1), (1, 9, 6, 3, 2), (1, 21, 5, 2, 1)], ids=str)
def test_triton_accuracy_over_sizes(impl, shape, short_chunks, assert_accurate):
    batch, length, dim, state, groups = shape
    assert_accurate(selective_scan, make_inputs(batch, length, dim, state, groups), impl)


@pytest.mark.parametrize("impl", TRITON)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_triton_accuracy_over_dtypes(impl, dtype, assert_accurate):
    assert_accurate(selective_scan, make_inputs(1, 18, 3, 2, dtype=dtype), impl)


@pytest.mark.parametrize("impl", TRITON)
@pytest.mark.parametrize("dt_scale", [1e-6, 50.0])
def test_triton_accuracy_at_extreme_decays(impl, dt_scale, short_chunks, assert_accurate):
    assert_accurate(selective_scan, make_inputs(1, 13, 4, 5, dt_scale=dt_scale), impl)


@pytest.mark.parametrize("impl", [*FAST, *TRITON])
def test_small_decays_after_a_huge_one(impl, short_chunks, assert_accurate):
    inputs = make_inputs(1, 14, 3, 2)
    inputs["dt"] = inputs["dt"] * 0.01
    inputs["dt"][:, 5] = 1e4
    assert_accurate(selective_scan, inputs, impl)


@pytest.mark.parametrize("impl", TRITON)
def test_triton_accuracy_with_every_option(impl, short_chunks, assert_accurate):
    inputs = make_inputs(2, 14, 3, 2) | {"D": torch.randn(3), "z": torch.randn(2, 14, 3), "dt_bias": torch.randn(3)}
    seq_idx = torch.tensor([[0] * 3 + [1] * 5 + [2] * 6, [4] * 13 + [2]])
    assert_accurate(partial(selective_scan, dt_softplus=True, seq_idx=seq_idx), inputs, impl)


@pytest.mark.parametrize("impl", [*FAST, *TRITON])
@pytest.mark.parametrize("bias", [-80.0, -8.0, 19.9, 60.0])
def test_accuracy_of_small_and_large_softplus(impl, bias, assert_accurate):
    """Steps of e^-80 and e^-8 to their own precision; torch's softplus goes over into its argument at 20."""
    inputs = make_inputs(1, 5, 3, 2) | {"dt_bias": torch.full((3,), bias), "z": torch.randn(1, 5, 3)}
    assert_accurate(partial(selective_scan, dt_softplus=True), inputs, impl)


@pytest.mark.parametrize("impl", TRITON)
def test_triton_block_sizes_do_not_matter(impl, monkeypatch):
    triton = pytest.importorskip("zoo.kernels.selective_scan.triton")
    inputs = make_inputs(1, 21, 6, 5, 2)
    expected = selective_scan(**inputs, impl="reference")
    for chunk, channels, elements in ((4, 1, 8), (12, 2, 256), (16, 8, 512), (64, 32, 256)):
        sizes = {"chunk": chunk, "channels": channels, "elements_a_warp": elements}
        monkeypatch.setattr(triton, "FORWARD", sizes)
        for a, b in zip(selective_scan(**inputs, impl=impl), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dt_scale", [1e-6, 50.0])
def test_accuracy_at_extreme_decays(impl, dt_scale, assert_accurate):
    assert_accurate(selective_scan, make_inputs(dim=70, state=16, dt_scale=dt_scale), impl)


@pytest.mark.parametrize("impl", FAST)
def test_accuracy_with_every_option(impl, assert_accurate):
    inputs = make_inputs() | {"D": torch.randn(10), "z": torch.randn(2, 40, 10), "dt_bias": torch.randn(10)}
    seq_idx = torch.tensor([[0] * 7 + [1] * 33, [4] * 39 + [2]])
    assert_accurate(partial(selective_scan, dt_softplus=True, seq_idx=seq_idx), inputs, impl)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_gradcheck(impl):
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(1, 35, 3, 2).items()}
    seq_idx = torch.tensor([[0] * 10 + [1] * 25])

    def call(*tensors):
        return selective_scan(**dict(zip(inputs, tensors, strict=True)), seq_idx=seq_idx, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize("impl", TRITON)
def test_triton_gradcheck(impl, short_chunks):
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(1, 10, 2, 2, 2).items()}
    seq_idx = torch.tensor([[0] * 3 + [1] * 7])

    def call(*tensors):
        return selective_scan(**dict(zip(inputs, tensors, strict=True)), seq_idx=seq_idx, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_split_and_resume(impl):
    inputs = make_inputs(length=50, dtype=torch.float64)
    A, state = inputs.pop("A"), inputs.pop("initial_state").double()
    whole, final = selective_scan(**inputs, A=A, initial_state=state, impl=impl)
    parts = []
    for part in (slice(0, 17), slice(17, 18), slice(18, 50)):
        piece = {name: t[:, part] for name, t in inputs.items()}
        output, state = selective_scan(**piece, A=A, initial_state=state, impl=impl)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("impl", ["reference", *FAST, *TRITON])
def test_packed_sequences_equal_separate_ones(impl):
    inputs = make_inputs(batch=1, length=30)
    A, state = inputs.pop("A"), inputs.pop("initial_state")
    seq_idx = torch.tensor([[3] * 11 + [1] * 19])
    packed, final = selective_scan(**inputs, A=A, initial_state=state, seq_idx=seq_idx, impl=impl)
    first, _ = selective_scan(**{k: v[:, :11] for k, v in inputs.items()}, A=A, initial_state=state, impl=impl)
    second, last = selective_scan(**{k: v[:, 11:] for k, v in inputs.items()}, A=A, impl=impl)
    torch.testing.assert_close(packed, torch.cat([first, second], 1))
    torch.testing.assert_close(final, last)


@pytest.mark.parametrize("impl", FAST)
def test_non_contiguous_input_and_determinism(impl):
    inputs = make_inputs()
    strided = {name: t.mT.contiguous().mT for name, t in inputs.items()}
    first, second = (selective_scan(**strided, impl=impl) for _ in range(2))
    for a, b, c in zip(first, second, selective_scan(**inputs, impl=impl), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by opcheck itself
@pytest.mark.parametrize("impl", FAST)
def test_operator_is_well_formed(impl):
    inputs = make_inputs(length=20)
    *tensors, state = (t.requires_grad_() for t in inputs.values())
    torch.library.opcheck(torch.ops.zoo.selective_scan.default, (*tensors, None, None, None, state, None, False, impl))


def test_compiles_as_one_graph():
    inputs = make_inputs()
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(**inputs), selective_scan(**inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("change", ["x", "dt", "A", "B", "C", "initial_state"])
def test_wrong_shape_names_the_argument(change):
    inputs = make_inputs()
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"selective_scan: {change} must have shape"):
        selective_scan(**inputs)


def test_wrong_dtype_groups_and_implementation():
    inputs = make_inputs()
    with pytest.raises(ValueError, match="x must be a floating-point tensor"):
        selective_scan(**inputs | {"x": inputs["x"].long()})
    with pytest.raises(ValueError, match="groups must divide the channels"):
        selective_scan(**make_inputs(dim=10, groups=3))
    with pytest.raises(ValueError, match=r"no implementation 'fastest'; choose 'auto' or one of .*chunked"):
        selective_scan(**inputs, impl="fastest")
    assert available_implementations("selective_scan")[0] == "native"

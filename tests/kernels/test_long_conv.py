from __future__ import annotations

from functools import partial
from math import prod

import pytest
import torch

from zoo.kernels import available_implementations
from zoo.kernels.long_conv import butterfly_conv, dft_factors, long_conv, monarch
from zoo.kernels.long_conv.fft import smooth_length

FAST = ["native", "fft", "monarch"]
ALL = ["reference", *FAST, "triton"]


def make_inputs(batch=2, length=40, taps=None, dim=3, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length + batch)
    randn = partial(torch.randn, generator=generator)
    return {
        "u": randn(batch, length, dim).to(dtype),
        "kernel": randn(dim, taps or length).to(dtype),
        "D": randn(dim).to(dtype),
        "gate": randn(batch, length, dim).to(dtype),
    }


def by_definition(u, kernel, D=None, gate=None, circular=False):
    """The sums of the docstring, one term at a time."""
    y = torch.zeros_like(u)
    for t in range(u.shape[1]):
        for j in range(kernel.shape[1]):
            if j <= t or circular:
                y[:, t] += kernel[:, j] * u[:, t - j]
    y = y if D is None else y + D * u
    return y if gate is None else gate * y


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("length", "taps"), [(1, 1), (2, 1), (12, 12), (13, 5), (37, 37)])
def test_is_its_definition(impl, circular, length, taps):
    inputs = make_inputs(3, length, taps, dtype=torch.float64)
    for names in (["u", "kernel"], ["u", "kernel", "D"], ["u", "kernel", "gate"], list(inputs)):
        given = {name: inputs[name] for name in names}
        expected = by_definition(**given, circular=circular)
        torch.testing.assert_close(long_conv(**given, circular=circular, impl=impl), expected)


@pytest.mark.parametrize("impl", ALL)
def test_taps_beyond_the_sequence_are_ignored(impl):
    inputs = make_inputs(1, 9, 20, dtype=torch.float64)
    inputs["kernel"].requires_grad_()
    y = long_conv(**inputs, impl=impl)
    torch.testing.assert_close(y, by_definition(**inputs))
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["kernel"])
    assert gradient[:, :9].abs().min() > 0 and not gradient[:, 9:].any()


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 251, 256, 500, 1021, 3000])
def test_accuracy_over_lengths(impl, circular, length, assert_accurate):
    assert_accurate(partial(long_conv, circular=circular), make_inputs(length=length), impl)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 3), (3, 100), (2, 256)])
def test_triton_accuracy_over_lengths(circular, batch, length, assert_accurate):
    assert_accurate(partial(long_conv, circular=circular), make_inputs(batch, length, dim=2), "triton")


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_triton_rows_longer_than_a_program(circular, dtype, assert_accurate, monkeypatch):
    triton = pytest.importorskip("zoo.kernels.long_conv.triton")
    monkeypatch.setattr(triton, "DEFAULT", {d: {"steps": 256, "num_warps": 4} for d in triton.DEFAULT})
    for length, taps in ((300, 200), (512, 20)) if circular else ((300, 300),):
        inputs = make_inputs(3, length, taps, dim=1, dtype=dtype)
        assert_accurate(partial(long_conv, circular=circular), inputs, "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triton_sum_over_a_split_batch(dtype, assert_accurate, monkeypatch):
    triton = pytest.importorskip("zoo.kernels.long_conv.triton")
    for programs in (1, 2, 256):
        monkeypatch.setattr(triton, "PROGRAMS", programs)
        assert_accurate(long_conv, make_inputs(5, 20, dim=1, dtype=dtype), "triton")


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (20, 33, 300), (3, 1100, 130)], ids=str)
def test_accuracy_over_dtypes_and_sizes(impl, dtype, shape, assert_accurate):
    batch, length, dim = shape
    inputs = make_inputs(batch, length, length // 2 + 1, dim, dtype)
    assert_accurate(long_conv, {name: t * 0.1 for name, t in inputs.items()}, impl)


@pytest.mark.parametrize("impl", [*FAST, "triton"])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_accuracy_at_extreme_kernels(impl, scale, assert_accurate):
    inputs = make_inputs(1, 30, dim=2)
    inputs["kernel"] = scale * inputs["kernel"] * torch.exp(-0.5 * torch.arange(30))
    assert_accurate(long_conv, inputs, impl)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("options", [(), ("D",), ("gate",), ("D", "gate")], ids=str)
@pytest.mark.parametrize("circular", [False, True])
def test_gradcheck(impl, options, circular):
    inputs = {n: t.requires_grad_() for n, t in make_inputs(1, 5, 3, 1, torch.float64).items()}
    inputs = {name: t for name, t in inputs.items() if name in ("u", "kernel", *options)}

    def call(*tensors):
        return long_conv(**dict(zip(inputs, tensors, strict=True)), circular=circular, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize("impl", ALL)
def test_an_empty_batch(impl):
    inputs = {name: t.requires_grad_() for name, t in make_inputs(0, 10).items()}
    y = long_conv(**inputs, impl=impl)
    gradients = torch.autograd.grad(y.sum(), list(inputs.values()))
    assert y.shape == (0, 10, 3) and all(not g.any() for g in gradients)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("dim", [16, 32, 45])
def test_native_over_groups_of_channels(dim, circular, assert_accurate):
    """Half a group, a whole one, and one with a rest; u and the gate as parts of a projection."""
    inputs = make_inputs(2, 16, 9, dim)
    wide = torch.cat([inputs["u"], inputs["gate"]], dim=-1)
    parts = inputs | dict(zip(("u", "gate"), wide.split(dim, dim=-1), strict=True))
    call = partial(long_conv, circular=circular)
    assert_accurate(call, inputs, "native")
    torch.testing.assert_close(call(**parts, impl="native"), call(**inputs, impl="native"), rtol=0, atol=0)


def test_automatic_choice_on_the_cpu():
    assert available_implementations("long_conv")[0] == "native"


def test_chosen_factors():
    for least in (1, 2, 3, 127, 1021, 2048, 5000, 8192):
        padded, exact = monarch.choose_factors(least), monarch.choose_factors(least, exact=True)
        assert least <= prod(padded) < 1.2 * least + 8 and prod(exact) == least
        assert all(factor & (factor - 1) == 0 for factor in padded[1:])
        assert monarch.cost(padded) <= monarch.cost((least,))


def test_smooth_length():
    for least in range(1, 300):
        fitting = [odd << a for odd in (1, 3, 5, 9) for a in range(1, 10)]
        assert smooth_length(least) == min(n for n in fitting if n >= least)


@pytest.mark.parametrize("sizes", [(79,), (16, 5), (4, 5, 4), (2, 2, 2, 2, 2, 3)], ids=str)
def test_butterfly_of_dft_factors_is_the_long_convolution(sizes, assert_accurate):
    inputs = make_inputs(dtype=torch.float64)
    factors = dft_factors(*sizes, dtype=torch.complex128)
    torch.testing.assert_close(butterfly_conv(**inputs, factors=factors), long_conv(**inputs))

    def call(impl, **tensors):
        if impl == "butterfly":
            wide = torch.complex128 if tensors["u"].dtype == torch.float64 else torch.complex64
            return butterfly_conv(**tensors, factors=dft_factors(*sizes, dtype=wide))
        return long_conv(**tensors, impl=impl)

    assert_accurate(call, make_inputs(), "butterfly")


def test_butterfly_of_the_length_of_the_sequence_is_circular():
    inputs = make_inputs(dtype=torch.float64)
    factors = dft_factors(8, 5, dtype=torch.complex128)
    torch.testing.assert_close(butterfly_conv(**inputs, factors=factors), long_conv(**inputs, circular=True))


def test_butterfly_with_factors_of_each_channel():
    """Channel by channel it is the convolution with that channel's factors."""
    inputs = make_inputs(dtype=torch.float64)
    factors = [torch.randn(3, n, n, dtype=torch.complex128) for n in (8, 10)]
    others = {
        "kernel_factors": [torch.randn(3, n, n, dtype=torch.float64) for n in (8, 10)],
        "inverse_factors": [torch.randn(3, n, n, dtype=torch.complex128) for n in (8, 10)],
    }
    y = butterfly_conv(**inputs, factors=factors, **others)
    for d in range(3):
        one = {"u": inputs["u"][..., d : d + 1], "gate": inputs["gate"][..., d : d + 1]}
        one |= {"kernel": inputs["kernel"][d : d + 1], "D": inputs["D"][d : d + 1]}
        one |= {name: [f[d] for f in given] for name, given in others.items()}
        torch.testing.assert_close(butterfly_conv(**one, factors=[f[d] for f in factors])[..., 0], y[..., d])


def test_butterfly_is_the_product_of_its_matrices():
    """Order 2, written out as dense matrices over the whole row: transform, product, inverse."""
    length, (n1, n2) = 6, (3, 4)
    u, kernel, *_ = make_inputs(2, length, dim=1, dtype=torch.float64).values()
    f1, f2 = (torch.randn(n, n, dtype=torch.complex128) for n in (n1, n2))
    angle = -2 * torch.pi * torch.arange(n1)[:, None].double() * torch.arange(n2) / (n1 * n2)
    roots = torch.polar(torch.ones_like(angle), angle)
    whole = torch.einsum("ka,kb,lb->klab", f1, roots, f2).reshape(n1 * n2, n1 * n2)
    inverse = torch.linalg.inv(whole)
    spectrum = (whole[:, :length] @ u[..., 0].mT.to(whole)) * (whole[:, :length] @ kernel[0].to(whole))[:, None]
    expected = (inverse @ spectrum)[:length].real.mT[..., None]
    y = butterfly_conv(u, kernel, [f1, f2], inverse_factors=[torch.linalg.inv(f) for f in (f1, f2)])
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_butterfly_gradcheck(dtype):
    u, kernel, D, gate = (t.requires_grad_() for t in make_inputs(1, 4, dim=1, dtype=torch.float64).values())
    matrices = [torch.randn(n, n, dtype=dtype, requires_grad=True) for _ in range(3) for n in (2, 3)]

    def call(u, kernel, D, gate, *f):
        return butterfly_conv(u, kernel, f[:2], kernel_factors=f[2:4], inverse_factors=f[4:], D=D, gate=gate)

    assert torch.autograd.gradcheck(call, (u, kernel, D, gate, *matrices))
    assert torch.autograd.gradcheck(lambda *f: butterfly_conv(u, kernel, f), tuple(matrices[:2]))


@pytest.mark.parametrize("change", ["u", "kernel", "D", "gate"])
@pytest.mark.parametrize("operation", [long_conv, partial(butterfly_conv, factors=dft_factors(8, 10))])
def test_wrong_shape_names_the_argument(change, operation):
    inputs = make_inputs()
    inputs[change] = inputs[change][..., None]
    with pytest.raises(ValueError, match=f"_conv: {change} must have shape"):
        operation(**inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": torch.zeros(3, 40, dtype=torch.int64)}, "kernel must be a floating-point tensor"),
        ({"kernel": torch.zeros(3, 0)}, "T and L must be at least 1, got T 40, L 0"),
        ({"kernel": torch.zeros(3, 41), "circular": True}, "at most T = 40 taps, got L = 41"),
        ({"impl": "cuda"}, "has no implementation 'cuda'"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        long_conv(**(make_inputs() | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": dft_factors(3, 13)}, "factors must be 2 matrices .* at least max.T, L. = 40, got 2 with 39"),
        ({"inverse_factors": dft_factors(8)}, "inverse_factors must be 2 matrices"),
        ({"kernel_factors": dft_factors(8, 11)}, r"kernel_factors\[1\] must have shape"),
        ({"factors": [torch.zeros(4, 8, 8), torch.zeros(3, 10, 10)]}, r"factors\[0\] must have shape \(D, N, N\)"),
    ],
)
def test_bad_factors(change, message):
    with pytest.raises(ValueError, match=message):
        butterfly_conv(**(make_inputs() | {"factors": dft_factors(8, 10)} | change))

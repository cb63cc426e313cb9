from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from zoo.kernels import available_implementations, causal_conv1d

FAST = ["shifted", "native"]
TRITON = [name for name in available_implementations("causal_conv1d") if name == "triton"]


def make_inputs(batch=2, length=20, dim=5, width=4, dtype=torch.float32) -> dict:
    return {
        "x": torch.randn(batch, length, dim).to(dtype),
        "weight": torch.randn(dim, width).to(dtype),
        "bias": torch.randn(dim).to(dtype),
        "initial_state": torch.randn(batch, width - 1, dim).to(dtype),
    }


@pytest.mark.parametrize("impl", ["reference", *FAST, *TRITON])
def test_is_a_padded_depthwise_convolution(impl):
    x, weight, bias, _ = make_inputs().values()
    expected = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=5).mT)
    output, state = causal_conv1d(x, weight, bias, activation="silu", impl=impl)
    torch.testing.assert_close(output, expected)
    assert torch.equal(state, x[:, -3:])


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("width", [2, 3, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 63])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_accuracy(impl, width, length, dtype, assert_accurate):
    inputs = make_inputs(length=length, width=width, dtype=dtype)
    assert_accurate(partial(causal_conv1d, activation="silu"), inputs, impl)
    seq_idx = (torch.arange(length) // 5).expand(2, length)
    assert_accurate(partial(causal_conv1d, seq_idx=seq_idx), inputs, impl)


@pytest.mark.parametrize("impl", TRITON)
@pytest.mark.parametrize(("width", "length"), [(2, 2), (4, 2), (6, 45)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_triton_accuracy(impl, width, length, dtype, assert_accurate):
    inputs = make_inputs(length=length, width=width, dtype=dtype)
    assert_accurate(partial(causal_conv1d, activation="silu"), inputs, impl)
    seq_idx = (torch.arange(length) // 5).expand(2, length)
    assert_accurate(partial(causal_conv1d, seq_idx=seq_idx), inputs, impl)


@pytest.mark.parametrize("impl", TRITON)
def test_triton_accuracy_over_blocks(impl, assert_accurate, monkeypatch):
    triton = pytest.importorskip("zoo.kernels.causal_conv1d.triton")
    seq_idx = (torch.arange(19) >= torch.tensor([[8], [13]])).long()
    inputs = make_inputs(length=19, dim=7, dtype=torch.bfloat16) | {"bias": torch.randn(7)}
    for steps, channels in ((4, 4), (8, 2), (64, 8)):
        monkeypatch.setattr(triton, "DEFAULT", {"steps": steps, "channels": channels, "warps": 4})
        assert_accurate(partial(causal_conv1d, seq_idx=seq_idx, activation="silu"), inputs, impl)


@pytest.mark.parametrize("impl", TRITON)
def test_triton_without_bias_and_state(impl, assert_accurate):
    x, weight, *_ = make_inputs(length=10).values()
    assert_accurate(partial(causal_conv1d, activation="silu"), {"x": x, "weight": weight}, impl)


@pytest.mark.parametrize("impl", ["reference", *FAST, *TRITON])
def test_gradcheck(impl):
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(2, 7, 2).items()}
    seq_idx = torch.tensor([[0] * 4 + [1] * 3, [0, 1, 2, 2, 2, 2, 3]])

    def call(*tensors):
        return causal_conv1d(**dict(zip(inputs, tensors, strict=True)), seq_idx=seq_idx, impl=impl)

    assert torch.autograd.gradcheck(call, tuple(inputs.values()), fast_mode=impl == "triton")


@pytest.mark.parametrize("impl", ["reference", *FAST, *TRITON])
def test_split_and_resume(impl):
    x, weight, bias, state = make_inputs(length=12).values()
    whole, final = causal_conv1d(x, weight, bias, initial_state=state, impl=impl)
    parts = []
    for part in (slice(0, 2), slice(2, 3), slice(3, 12)):
        output, state = causal_conv1d(x[:, part], weight, bias, initial_state=state, impl=impl)
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert torch.equal(state, final)


@pytest.mark.parametrize("impl", ["reference", *FAST])
@pytest.mark.parametrize("first", [1, 2, 11, 18])
def test_packed_sequences_equal_separate_ones(impl, first):
    x, weight, bias, state = make_inputs(batch=1).values()
    seq_idx = torch.tensor([[7] * first + [2] * (20 - first)])
    packed, final = causal_conv1d(x, weight, bias, initial_state=state, seq_idx=seq_idx, impl=impl)
    one, _ = causal_conv1d(x[:, :first], weight, bias, initial_state=state, impl=impl)
    two, last = causal_conv1d(x[:, first:], weight, bias, impl=impl)
    torch.testing.assert_close(packed, torch.cat([one, two], 1))
    assert torch.equal(final, last)


@pytest.mark.parametrize("impl", FAST)
def test_accuracy_over_many_channels(impl, assert_accurate):
    seq_idx = (torch.arange(150) >= torch.tensor([[70], [101]])).long()
    assert_accurate(partial(causal_conv1d, seq_idx=seq_idx), make_inputs(length=150, dim=300), impl)


def test_native_is_preferred_and_deterministic():
    assert available_implementations("causal_conv1d")[0] == "native"
    inputs = {name: t.requires_grad_() for name, t in make_inputs(length=100, dim=300).items()}
    strided = inputs | {"x": inputs["x"].mT.contiguous().mT}
    first, second = (
        [*causal_conv1d(**i), *torch.autograd.grad(causal_conv1d(**i).output.square().sum(), list(inputs.values()))]
        for i in (inputs, strided)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by opcheck itself
@pytest.mark.parametrize("impl", FAST)
def test_operator_is_well_formed(impl):
    x, weight, bias, state = (t.requires_grad_() for t in make_inputs().values())
    torch.library.opcheck(torch.ops.zoo.causal_conv1d.default, (x, weight, bias, state, None, True, impl))


def test_bad_input_is_named():
    inputs = make_inputs()
    with pytest.raises(ValueError, match="causal_conv1d: bias must have shape"):
        causal_conv1d(**inputs | {"bias": torch.zeros(4)})
    with pytest.raises(ValueError, match="width at least 2"):
        causal_conv1d(inputs["x"], inputs["weight"][:, :1])
    with pytest.raises(ValueError, match="activation must be None or 'silu', got 'relu'"):
        causal_conv1d(inputs["x"], inputs["weight"], activation="relu")

"""The implementations "mamba_ssm", with stand-ins for the packages: they check the layouts they are given, as the
packages do, and compute by the reference."""

from __future__ import annotations

import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from zoo.kernels import available_implementations, causal_conv1d, mamba_ssm_support, selective_scan, ssd
from zoo.kernels.selective_scan.op import operation

CPU = torch.device("cpu")


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
):
    """(B, D, L), (B, D, L), (D, N), (B, G, N, L) of one dtype, A float32, time contiguous -> (B, D, L), (B, D, N)."""
    assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == torch.float32
    assert all(t.stride(-1) == 1 for t in (u, delta, B, C))
    maps = (t.permute(0, 3, 1, 2) for t in (B, C))
    assert z is None or (z.dtype == u.dtype and z.stride(-1) == 1)
    options = {"D": D, "z": None if z is None else z.mT, "dt_bias": delta_bias, "dt_softplus": delta_softplus}
    y, last = selective_scan(u.mT, delta.mT, A, *maps, **options, impl="reference")
    out, last = y.mT.contiguous(), last.mT.contiguous().mT
    return (out, last.detach()) if return_last_state else out


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None,
    dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False, return_varlen_states=False,
):  # fmt: skip
    assert x.dtype == B.dtype == C.dtype and A.dtype == dt.dtype == torch.float32
    assert chunk_size in (16, 32, 64, 128, 256)
    assert seq_idx is None or (seq_idx.dtype == torch.int32 and seq_idx.is_contiguous() and (seq_idx[:, 0] == 0).all())
    out, final = ssd(x, dt, A, B, C, initial_state=initial_states, seq_idx=seq_idx, impl="reference")
    return (out, final) if return_final_states else out


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None,
    activation=None,
):  # fmt: skip
    """x (B, D, L) and initial_states (B, D, W - 1) with the channels contiguous -> (B, D, L)."""
    assert x.stride(1) == 1 and initial_states.stride(1) == 1 and x.stride(0) % 8 == x.stride(2) % 8 == 0
    assert initial_states.dtype == x.dtype and (bias is None or bias.dtype == weight.dtype)
    assert seq_idx is None and not return_final_states
    y, _ = causal_conv1d(x.mT, weight, bias, activation=activation, initial_state=initial_states.mT, impl="reference")
    return y.mT


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins under the packages' names, and the support module told that the CPU will do."""

    def package(name: str, **contents) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    package("mamba_ssm")
    package("mamba_ssm.ops")
    package("mamba_ssm.ops.triton")
    package("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=selective_scan_fn)
    package("mamba_ssm.ops.triton.ssd_combined", mamba_chunk_scan_combined=mamba_chunk_scan_combined)
    package("selective_scan_cuda")
    package("causal_conv1d", causal_conv1d_fn=causal_conv1d_fn)
    mamba_ssm_support._installed.cache_clear()
    yield
    mamba_ssm_support._installed.cache_clear()


@pytest.fixture
def on_cpu(packages, monkeypatch):
    original = mamba_ssm_support.obstacle
    monkeypatch.setattr(mamba_ssm_support, "obstacle", lambda device, *names: original(torch.device("cuda"), *names))


def scan_inputs(dtype=torch.float32) -> dict:
    return {
        "x": torch.randn(2, 9, 6).to(dtype),
        "dt": torch.rand(2, 9, 6).to(dtype),
        "A": -torch.rand(6, 3),
        "B": torch.randn(2, 9, 2, 3).to(dtype),
        "C": torch.randn(2, 9, 2, 3).to(dtype),
    }


def ssd_inputs(dtype=torch.float32) -> dict:
    return {
        "x": torch.randn(2, 9, 4, 3).to(dtype),
        "dt": torch.rand(2, 9, 4),
        "A": -torch.rand(4),
        "B": torch.randn(2, 9, 2, 5).to(dtype),
        "C": torch.randn(2, 9, 2, 5).to(dtype),
        "initial_state": torch.randn(2, 4, 3, 5),
    }


def conv_inputs(dtype=torch.float32, width=4, dim=8, length=9) -> dict:
    return {
        "x": torch.randn(2, length, dim).to(dtype),
        "weight": torch.randn(dim, width),
        "bias": torch.randn(dim),
        "initial_state": torch.randn(2, width - 1, dim).to(dtype),
    }


@pytest.mark.parametrize("name", ["selective_scan", "ssd", "causal_conv1d"])
def test_where_it_is_not_installed(name, monkeypatch):
    monkeypatch.setattr(mamba_ssm_support, "_installed", lambda package: False)
    package = "causal-conv1d" if name == "causal_conv1d" else "mamba-ssm"
    call = {"selective_scan": selective_scan, "ssd": ssd, "causal_conv1d": causal_conv1d}[name]
    inputs = {"selective_scan": scan_inputs, "ssd": ssd_inputs, "causal_conv1d": conv_inputs}[name]()
    with pytest.raises(RuntimeError, match=f"{name}: implementation 'mamba_ssm' cannot run on cpu: {package} is not"):
        call(**inputs, impl="mamba_ssm")
    assert "mamba_ssm" not in available_implementations(name, "cuda")


def test_where_only_the_compiled_part_is_missing(packages, monkeypatch):
    monkeypatch.delitem(sys.modules, "selective_scan_cuda")
    assert "the compiled part of mamba-ssm" in str(
        operation.implementations["mamba_ssm"].obstacle(torch.device("cuda"))
    )


def test_needs_cuda_and_its_name(packages):
    for name in ("selective_scan", "ssd", "causal_conv1d"):
        assert "mamba_ssm" not in available_implementations(name, "cpu")
        assert available_implementations(name, "cuda")[-1] == "mamba_ssm"
    with pytest.raises(RuntimeError, match="'mamba_ssm' cannot run on cpu: it needs a CUDA device"):
        selective_scan(**scan_inputs(), impl="mamba_ssm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selective_scan(on_cpu, dtype, assert_accurate):
    def outputs_only(**inputs):
        return selective_scan(**inputs).output

    assert_accurate(outputs_only, scan_inputs(dtype), "mamba_ssm")
    strided = {name: t.mT.contiguous().mT for name, t in scan_inputs(dtype).items()}
    found, expected = (selective_scan(**strided, impl=impl) for impl in ("mamba_ssm", "reference"))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_ssd(on_cpu, packed, dtype, assert_accurate):
    seq_idx = torch.tensor([[3] * 4 + [1] * 5, [2] * 9]) if packed else None
    inputs = ssd_inputs(dtype)
    if dtype == torch.float32:
        assert_accurate(partial(ssd, seq_idx=seq_idx, chunk_size=7), inputs, "mamba_ssm")
    found, expected = (ssd(**inputs, seq_idx=seq_idx, chunk_size=500, impl=i) for i in ("mamba_ssm", "reference"))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_conv1d(on_cpu, dtype, activation, assert_accurate):
    assert_accurate(partial(causal_conv1d, activation=activation), conv_inputs(dtype), "mamba_ssm")
    x, weight, *_ = conv_inputs(dtype, width=2).values()
    assert_accurate(partial(causal_conv1d, activation=activation), {"x": x, "weight": weight}, "mamba_ssm")


def test_the_gradient_it_does_not_have_is_nan(on_cpu):
    state = torch.zeros(2, 6, 3, requires_grad=True)
    selective_scan(**scan_inputs(), initial_state=state, impl="mamba_ssm").output.sum().backward()
    assert state.grad.isnan().all()


def test_what_selective_scan_cannot_do_is_an_error(on_cpu):
    inputs = {name: t.requires_grad_() for name, t in scan_inputs().items()}
    call = partial(selective_scan, **inputs, impl="mamba_ssm")
    with pytest.raises(RuntimeError, match="'mamba_ssm' does not support packed sequences"):
        call(seq_idx=torch.zeros(2, 9, dtype=torch.long))
    with pytest.raises(RuntimeError, match="does not support an initial state other than zero"):
        call(initial_state=torch.ones(2, 6, 3))
    with pytest.raises(RuntimeError, match="no gradient through the final state"):
        call().final_state.sum().backward()
    with pytest.raises(RuntimeError, match="takes float32, bfloat16 and float16 only"):
        selective_scan(**{name: t.double() for name, t in inputs.items()}, impl="mamba_ssm")
    x, dt, A, B, C = inputs.values()
    A, B, C = (t.repeat_interleave(86, dim=-1) for t in (A, B, C))
    with pytest.raises(RuntimeError, match="at most 256 states a channel, not 258"):
        selective_scan(x, dt, A, B, C, impl="mamba_ssm")


def test_what_ssd_and_causal_conv1d_cannot_do_is_an_error(on_cpu):
    with pytest.raises(RuntimeError, match=r"ssd: .* takes float32, bfloat16 and float16 only"):
        ssd(**{name: t.double() for name, t in ssd_inputs().items()}, impl="mamba_ssm")
    convolve = partial(causal_conv1d, impl="mamba_ssm")
    with pytest.raises(RuntimeError, match=r"causal_conv1d: .* takes float32, bfloat16 and float16 only"):
        convolve(**conv_inputs(torch.float64))
    with pytest.raises(RuntimeError, match="does not support packed sequences"):
        convolve(**conv_inputs(), seq_idx=torch.zeros(2, 9, dtype=torch.long))
    with pytest.raises(RuntimeError, match=r"supports widths \(2, 3, 4\), not 5"):
        convolve(**conv_inputs(width=5))
    with pytest.raises(RuntimeError, match="supports multiples of 8 channels, not 12"):
        convolve(**conv_inputs(dim=12))
    with pytest.raises(RuntimeError, match="needs at least W - 1 = 3 time steps, not 2"):
        convolve(**conv_inputs(length=2))


def test_stand_ins_are_told_apart_from_the_reference(on_cpu, monkeypatch):
    """The call above really goes through the package: another activation there is another result here."""
    module = sys.modules["causal_conv1d"]
    monkeypatch.setattr(module, "causal_conv1d_fn", lambda *a, **k: F.relu(causal_conv1d_fn(*a, **k)), raising=True)
    assert (causal_conv1d(**conv_inputs(), impl="mamba_ssm").output >= 0).all()

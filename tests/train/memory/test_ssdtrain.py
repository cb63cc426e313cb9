"""SSDTrain: bit-equal gradients whatever becomes of the graph, bounded memory, and no file left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from cases.names import by_kind
from zoo.train.memory import SSDTrain, lean, spool
from zoo.train.memory.spool import Spool
from zoo.train.memory.ssdtrain import unpack

OPTIONS = {"resident": 2**15, "smallest": 2**8}
WIDE = {"dim": 64, "depth": 4, "mlp_dim": 192}


@pytest.fixture
def spools(monkeypatch: pytest.MonkeyPatch) -> list[Spool]:
    """Those that are made, kept alive for their counts."""
    found: list[Spool] = []

    def noted(*arguments: Any) -> Spool:
        found.append(Spool(*arguments))
        return found[-1]

    monkeypatch.setattr("zoo.train.memory.ssdtrain.Spool", noted)
    return found


def gradients(model: nn.Module, loss: Tensor, **options: Any) -> list[Tensor]:
    model.zero_grad()
    loss.backward(**options)
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", [*by_kind(zoo.list_models("*_nano", task="language")), "vit_nano", "revunet3d_nano"])
def test_gradients_are_equal_to_the_bit(name, spools):
    torch.manual_seed(0)
    model: Any = zoo.create_model(name).train()
    x = torch.randint(0, 255, (2, 48))
    if not hasattr(model.config, "vocab_size"):
        x = torch.randn(2, model.config.in_chans, *model.config.image_shape)

    def loss() -> Tensor:
        torch.manual_seed(1)
        return model(x).float().square().mean() + sum(zoo.auxiliary_losses(model).values())

    expected = gradients(model, loss())
    memory = lean(model, "ssdtrain", **OPTIONS)
    for found, wanted in zip(gradients(model, loss()), expected, strict=True):
        assert torch.equal(found, wanted)
    memory.remove()
    assert len(spools) == 1 and spools[0].written > 0 and spools[0].held == 0


def test_two_losses_a_kept_graph_shared_weights_and_half_precision(spools):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Sigmoid()).train().bfloat16()
    x = torch.randn(64, 64, dtype=torch.bfloat16)

    def passes() -> list[Tensor]:
        y = model(x)
        first = gradients(model, y.square().mean(), retain_graph=True)
        again = gradients(model, y.square().mean(), retain_graph=True)
        return [*first, *again, *gradients(model, y.sin().mean())]

    expected = passes()
    lean(model, "ssdtrain", resident=0, smallest=1)
    assert all(torch.equal(a, b) for a, b in zip(passes(), expected, strict=True))
    assert spools[0].written and spools[0].held == 0


def test_memory_is_bounded_and_what_is_saved_twice_is_written_once(spools):
    """Of a chain of layers that keep 64 KiB each, with room for two."""
    size, layers = 2**16, 12
    model = nn.Sequential(*[nn.Tanh() for _ in range(layers)]).train()
    lean(model, "ssdtrain", resident=2 * size)
    x = torch.randn(size // 4, requires_grad=True)
    model(x).sum().backward()
    assert spools[0].written <= (layers - 2) * size and spools[0].written >= (layers - 5) * size
    assert spools[0].most <= 7 * size, "the newest, those on the way out and in, and the one at hand"

    pool = Spool(resident=0)
    t = torch.randn(8, 1024)
    parts = [t, t[:4], t.view(-1)[2048:], t.T, t[0, :8], t.expand(2, -1, -1)]
    found = [pool.put(part) for part in parts]
    other = pool.put(t.clone())
    for write in pool.writes:
        write.result()
    assert pool.written == 2 * t.nbytes + 32, "views of a storage once, few numbers of it by themselves"
    for part, one in zip(parts, found, strict=True):
        assert torch.equal(one.get(), part) and (one.get().stride() == part.stride())
    assert torch.equal(other.get(), t)


@pytest.mark.parametrize("resident", [0, 2**20])
def test_what_is_conjugated_or_negated_as_it_is_read_comes_back_so(resident):
    """Torch keeps that beside the bytes, which are those of another tensor."""
    pool, z = Spool(resident=resident), torch.randn(8, 256, dtype=torch.complex64)
    parts = [z, z.conj(), z.mH, z.conj().imag, torch._neg_view(z.conj()), torch._neg_view(z.real)]
    found = [pool.put(part) for part in parts]
    for write in pool.writes:
        write.result()
    assert pool.written == (0 if resident else z.nbytes)
    for part, one in zip(parts, found, strict=True):
        got = one.get()
        assert torch.equal(got, part) and got.stride() == part.stride()
        assert (got.is_conj(), got.is_neg()) == (part.is_conj(), part.is_neg())


def test_gradients_of_conjugated_numbers():
    """A product keeps its factors, one of them conjugated; and the imaginary part of that is a negated one."""
    z, w = (torch.randn(64, 64, dtype=torch.complex128, requires_grad=True) for _ in range(2))

    class Product(nn.Module):
        def forward(self) -> Tensor:
            return (z.conj() @ w).abs().sum() + (z.conj().imag * w.real).square().sum() + (z.mH * w).real.exp().sum()

    model = Product().train()
    expected = torch.autograd.grad(model(), (z, w))
    lean(model, "ssdtrain", resident=0, smallest=1)
    for found, wanted in zip(torch.autograd.grad(model(), (z, w)), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_tensor_that_is_changed_is_an_error_as_before():
    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            z = y.square()
            y.add_(1)
            return z

    model, x = Changed().train(), torch.randn(256, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()
    lean(model, "ssdtrain", resident=2**20, smallest=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()


def test_storage_that_is_used_again_is_not_taken_for_the_old_one():
    """What is freed is given out again at the same place, with other numbers."""
    pool, found, expected = Spool(resident=0), [], []
    for value in range(40):
        tensor = torch.full((4096,), float(value))
        expected.append(value)
        found.append(pool.put(tensor))
        del tensor
    assert [float(one.get()[7]) for one in found] == expected


def test_parameters_and_small_tensors_stay():
    layer = nn.Linear(128, 128)
    hooks: Any = SSDTrain(smallest=1000).forward(layer)
    stay = (layer.weight, layer.weight.T, layer.weight[3:90].detach(), torch.ones(249))
    for tensor in (*stay, torch._efficientzerotensor((512,)), torch.ones(16, 16).to_sparse()):
        assert hooks.pack_hook(tensor) is tensor and unpack(tensor) is tensor
    assert not isinstance(hooks.pack_hook(torch.ones(250)), Tensor)


def test_a_full_disk_is_the_error_of_the_step(monkeypatch):
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.os, "pwrite", full)
    model: Any = zoo.create_model("transformer_nano", **WIDE).train()
    lean(model, "ssdtrain", resident=0, smallest=1)
    with pytest.raises(OSError, match="No space left"):
        model(torch.zeros(1, 16, dtype=torch.int64)).sum().backward()


def test_options():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="folder must exist"):
        lean(model, "ssdtrain", folder="/nowhere")
    with pytest.raises(ValueError, match="resident must be at least 0"):
        lean(model, SSDTrain(resident=-1))


def test_goes_with_streambp(spools):
    model: Any = zoo.create_model("transformer_nano", dtype=torch.float64, **WIDE).train()
    tokens = torch.arange(120).view(2, 60)
    expected = gradients(model, model(tokens, labels=tokens))
    lean(model, {"kind": "streambp", "chunk_size": 16}, SSDTrain(**OPTIONS))
    for found, wanted in zip(gradients(model, model(tokens, labels=tokens)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert spools[0].written > 0


HELD = """
import sys, time, torch
from zoo.train.memory import lean
model = torch.nn.Sequential(*[torch.nn.Tanh() for _ in range(9)]).train()
lean(model, "ssdtrain", folder=sys.argv[1], resident=0)
y = model(torch.randn(2**18, requires_grad=True))
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_killed_in_mid_step_it_leaves_no_file(tmp_path):
    victim = subprocess.Popen([sys.executable, "-c", HELD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert victim.stdout is not None and victim.stdout.readline() == "held\n"
        if sys.platform == "linux":
            files = [os.readlink(f"/proc/{victim.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{victim.pid}/fd")]
            assert any(str(tmp_path) in file for file in files), "it is there, without a name"
        assert not list(tmp_path.iterdir())
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.communicate(timeout=30)
    time.sleep(0.1)
    assert not list(tmp_path.iterdir())

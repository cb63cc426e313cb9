"""COAT's activations: what is kept in eight bits, how it is rounded, and what that does to gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import Tensor, nn

import zoo
from zoo.layers import RMSNorm, SwiGLU
from zoo.train.callbacks import LastCheckpoint, RNGState, newest_checkpoint
from zoo.train.coat import COAT
from zoo.train.data import DocumentationDataModule
from zoo.train.memory import lean
from zoo.train.memory.coat import Rounded
from zoo.train.tasks import LanguageModeling


def test_one_scale_and_groups():
    x = torch.randn(3, 5, 37)
    one, groups = Rounded.of(x, None), Rounded.of(x, 16)
    scale = x.abs().max() / 448
    torch.testing.assert_close(one.restored(), (x / scale).to(torch.float8_e4m3fn).float() * scale)
    parts = nn.functional.pad(x, (0, 11)).unflatten(-1, (-1, 16))
    scale = (parts.abs().amax(-1, keepdim=True) / 448).bfloat16().float()
    expected = ((parts / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale).flatten(-2)[..., :37]
    torch.testing.assert_close(groups.restored(), expected)
    assert one.nbytes == x.numel() + 4 and groups.nbytes == x.numel() + 2 * 3 * 5 * 3
    assert groups.restored().shape == x.shape and Rounded.of(x.bfloat16(), 16).restored().dtype == torch.bfloat16
    assert not Rounded.of(torch.zeros(2, 16), 16).restored().any()


def kept(model: nn.Module, run: Any) -> list[Any]:
    """What a step keeps for its backward pass."""
    found: list[Any] = []
    original = Rounded.of

    def note(x: Tensor, *args: Any) -> Rounded:
        found.append(original(x, *args))
        return found[-1]

    Rounded.of = note  # type: ignore[method-assign]
    try:
        run().backward()
    finally:
        Rounded.of = original  # type: ignore[method-assign]
    return found


def test_what_is_kept_of_a_feed_forward_layer():
    """Once what two layers read; groups for the norm, the activation and the product; no weight."""
    model = nn.Sequential(RMSNorm(32), SwiGLU(32, 48)).train()
    lean(model, "coat", smallest=0, states=False)
    found = kept(model, lambda: model(torch.randn(2, 16, 32).requires_grad_()).square().sum())
    shapes = sorted((one.codes.numel(), one.group) for one in found if one.group)
    assert shapes == [*[(2 * 16 * 32, 16)] * 2, *[(2 * 16 * 48, 16)] * 3], "x, x / rms(x); gate, act(gate), up"
    assert sorted(one.codes.numel() for one in found if not one.group) == [2 * 16 * 32, 2 * 16 * 48]


def test_outputs_stay_and_gradients_are_near():
    torch.manual_seed(0)
    plain: Any = zoo.create_model("transformer_nano").train()
    tokens = torch.randint(256, (2, 64))
    expected = plain(tokens, labels=tokens)
    expected.backward()
    exact = [p.grad.clone() for p in plain.parameters()]
    plain.zero_grad()
    memory = lean(plain, "coat", smallest=0)
    loss = plain(tokens, labels=tokens)
    assert torch.equal(loss, expected)
    loss.backward()
    for p, g in zip(plain.parameters(), exact, strict=True):
        assert 0 < (p.grad - g).norm() < 0.1 * g.norm() or not p.dim() > 1
    memory.remove()
    plain.zero_grad()
    plain(tokens, labels=tokens).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(plain.parameters(), exact, strict=True))


def test_gradients_of_a_linear_layer_are_those_of_the_rounded_input():
    layer, x = nn.Linear(64, 32), torch.randn(4, 16, 64).requires_grad_()
    model = nn.Sequential(layer).train()
    lean(model, "coat", states=False)
    dy = torch.randn(4, 16, 32)
    model(x).backward(dy)
    rounded = Rounded.of(x, None).restored()
    torch.testing.assert_close(layer.weight.grad, dy.flatten(0, 1).mT @ rounded.flatten(0, 1))
    torch.testing.assert_close(x.grad, dy @ layer.weight)


def test_a_matrix_cast_by_autocast_is_kept_as_it_is():
    layer, x = nn.Linear(64, 64), torch.randn(4, 16, 64).requires_grad_()
    model = nn.Sequential(layer).train()
    lean(model, "coat", states=False)
    dy = torch.randn(4, 16, 64).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x).backward(dy)
    torch.testing.assert_close(x.grad, (dy @ layer.weight.bfloat16()).float())


def test_the_optimiser_is_coats():
    model: Any = zoo.create_model("transformer_nano")
    memory = lean(model, "coat", activations=False, expand=False)
    groups = [{"params": [*model.parameters()], "weight_decay": 0.3, "lr": 0.5}]
    optimizer = memory.optimizer(lambda _: torch.optim.AdamW(groups, betas=(0.8, 0.9)))
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, COAT) and not group["expand"]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.5, 0.3, (0.8, 0.9))
    with pytest.raises(ValueError, match="coat keeps the states of adamw, not those of SGD: take states=False"):
        memory.optimizer(lambda model: torch.optim.SGD(model.parameters()))
    for options, message in [
        ({"activations": False, "states": False}, "neither activations nor states"),
        ({"group_size": 0}, "group_size must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            lean(zoo.create_model("transformer_nano", device="meta"), "coat", **options)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("kind", ["coat", "lemo"])
def test_a_run_goes_on_to_the_bit(trainer, tmp_path, kind):
    """From the last checkpoint that it wrote, as after kill -9."""
    small = {"dim": 32, "depth": 3, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 48}
    memory = {"kind": kind} | ({"smallest": 0} if kind == "coat" else {"block_size": 4, "forget": 0.5})

    def fit(name: str, steps: int) -> dict[str, Tensor]:
        seed_everything(0, verbose=False)
        task = LanguageModeling("transformer_nano", small, lr=1e-2, schedule_steps=99, memory=memory)
        data = DocumentationDataModule(seq_len=16, batch_size=2)
        folder = tmp_path / name
        runner = trainer(RNGState(), LastCheckpoint(1), max_steps=steps, limit_val_batches=0, default_root_dir=folder)
        runner.fit(task, data, ckpt_path=newest_checkpoint(folder), weights_only=True)
        assert isinstance(runner.optimizers[0], COAT) == (kind == "coat")
        return task.state_dict()

    whole = fit("whole", 5)
    fit("broken", 2)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in fit("broken", 5).items())

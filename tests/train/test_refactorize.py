"""Refactorisation and momentum reset: the same product of balanced factors, when it happens, and resuming."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything
from torch import nn

import zoo
from zoo.train.callbacks import LastCheckpoint, Refactorize, RNGState, newest_checkpoint
from zoo.train.callbacks.refactorize import balance, factors, forget
from zoo.train.data import DocumentationDataModule
from zoo.train.optim import build_optimizer, states_of
from zoo.train.tasks import LanguageModeling

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
LOW = {"kind": "sltrain", "rank": 2, "density": 0.0, "alpha": 2.0, "start": "drawn"}
SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 16}


@pytest.mark.parametrize("rows, columns, rank", [(7, 5, 3), (5, 9, 5), (6, 6, 1)])
def test_factors_are_balanced_and_their_product_stays(rows, columns, rank):
    outer, inner = torch.randn(rows, rank).double() * 60, torch.randn(rank, columns).double()
    product, norm = outer @ inner, outer.square().sum() + inner.square().sum()
    balance(outer, inner)
    torch.testing.assert_close(outer @ inner, product)
    values = torch.linalg.svdvals(product)[:rank].diag()
    torch.testing.assert_close(outer.mT @ outer, values)
    torch.testing.assert_close(inner @ inner.mT, values)
    assert outer.square().sum() + inner.square().sum() < norm


def test_layers_of_both_kinds_and_convolutions_keep_their_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 10))
    zoo.factorize(model, 2, "random")
    language: Any = zoo.create_model("transformer_nano", changes=[LOW], **SMALL)
    for one, x in ((model, torch.randn(2, 3, 4, 4)), (language, torch.arange(20)[None])):
        before, pairs = one(x), factors(one)
        for outer, inner in pairs:
            balance(outer, inner)
        assert len(pairs) == (3 if one is model else 14)
        torch.testing.assert_close(one(x), before, rtol=1e-4, atol=1e-5)


def test_an_average_of_the_weights_goes_on_with_the_new_factors():
    """Means of both compute what they computed in the mean, to the second order of what they are apart."""
    task: Any = LanguageModeling("transformer_nano", {**SMALL, "changes": [LOW], "dtype": torch.float64})
    task.keep_average = True
    task.configure_model()
    with torch.no_grad():
        for parameter in task.average.parameters():
            parameter += 1e-4 * torch.randn_like(parameter)

    def products(mean: bool = False) -> list[torch.Tensor]:
        own, averaged = factors(task.trained), factors(task.average)
        if not mean:
            return [outer @ inner for outer, inner in averaged]
        return [(a + c) @ (b + d) / 4 for (a, b), (c, d) in zip(own, averaged, strict=True)]

    before = products(), products(mean=True)
    Refactorize(every_n_steps=3).on_train_batch_start(SimpleNamespace(global_step=3, optimizers=[]), task, None, 0)  # type: ignore[arg-type]
    for one, other in zip(before, (products(), products(mean=True)), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_a_drawn_start_lets_every_layer_learn():
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", changes=[LOW], **SMALL)
    tokens = torch.arange(40).view(2, 20)
    model(tokens, labels=tokens).backward()
    assert all(factor.grad.any() for pair in factors(model) for factor in pair)
    with pytest.raises(ValueError, match="start must be 'sparse' or 'drawn', got 'zero'"):
        zoo.create_model("transformer_nano", changes=[{**LOW, "start": "zero"}])


@pytest.mark.parametrize("name", ["adamw", "coat", "sgd", "lookahead_adamw"])
def test_forgetting_sets_the_first_moment_to_zero_and_no_other(name):
    model = nn.Linear(6, 5)
    optimizer = build_optimizer(model, name, lr=0.1, weight_decay=0.0)
    forget(optimizer)  # nothing yet
    model(torch.ones(2, 6)).square().sum().backward()
    optimizer.step()
    forget(optimizer)
    for state in states_of(optimizer).values():
        first = state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]
        assert not first.float().any() and ("exp_avg_sq" not in state or state["exp_avg_sq"].float().any())


def test_an_optimiser_without_momentum():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.Adagrad([parameter])
    optimizer.step()
    with pytest.raises(ValueError, match="Adagrad has no momentum that is known"):
        forget(optimizer)


@pytest.fixture
def fit(trainer, tmp_path: Path):
    def run(name: str, steps: int, watched: Any = None, **options: Any) -> tuple[dict[str, Any], list[float]]:
        seed_everything(0, verbose=False)
        rates: list[float] = []
        task = LanguageModeling("transformer_nano", {**SMALL, "changes": [LOW]}, lr=1e-2, schedule_steps=10**9)
        step = task.optimizer_step

        def noted(epoch: int, batch: int, optimizer: Any, closure: Any = None) -> None:
            step(epoch, batch, optimizer, closure)
            rates.append(optimizer.param_groups[0]["lr"])

        task.optimizer_step = noted  # type: ignore[method-assign]
        if watched is not None:
            task.on_train_batch_start = lambda *_: watched(task)  # type: ignore[method-assign]
        callbacks = [RNGState(), Refactorize(every_n_steps=3, recovery_steps=2, **options), LastCheckpoint(1)]
        runner: Trainer = trainer(*callbacks, max_steps=steps, limit_val_batches=0, default_root_dir=tmp_path / name)
        data = DocumentationDataModule(seq_len=16, batch_size=2)
        runner.fit(task, data, ckpt_path=newest_checkpoint(tmp_path / name), weights_only=True)
        return {key: tensor.clone() for key, tensor in task.state_dict().items()}, rates

    return run


def test_it_happens_every_so_many_steps_and_resumes(fit):
    balanced, still = [], []

    def watch(task: Any) -> None:
        pairs = factors(task.trained)
        balanced.append(all((B.mT @ B - A @ A.mT).abs().max() < 1e-5 for B, A in pairs))
        states = states_of(task.trainer.optimizers[0]).values()
        still.append(not any(state["exp_avg"].any() for state in states))

    whole, rates = fit("whole", 8, watch)
    due = [False, False, False, True, False, False, True, False]
    assert balanced == due and still == [True, *due[1:]]
    assert rates == pytest.approx([1e-2 * f for f in (1, 1, 1, 1 / 3, 2 / 3, 1, 1 / 3, 2 / 3)])
    for stop in (3, 4):
        fit(f"broken{stop}", stop)
        resumed, _ = fit(f"broken{stop}", 8)
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_a_model_without_low_ranks_and_options_out_of_range(trainer):
    task = LanguageModeling("transformer_nano", SMALL)
    with pytest.raises(ValueError, match="Refactorize takes a model with low ranks"):
        trainer(Refactorize(), max_steps=1).fit(task, DocumentationDataModule(seq_len=16, batch_size=2))
    for options, message in (({"every_n_steps": 0}, "every_n_steps must"), ({"recovery_steps": -1}, "recovery_steps")):
        with pytest.raises(ValueError, match=message):
            Refactorize(**options)

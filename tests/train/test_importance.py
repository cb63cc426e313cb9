"""IST: how layers are drawn and scored, what learns in a step, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer, seed_everything

import zoo
from zoo.adapt import own_names
from zoo.train.adapt import ImportanceSampling
from zoo.train.adapt.importance import Scores, numbered
from zoo.train.callbacks import LastCheckpoint, RNGState, newest_checkpoint
from zoo.train.data import DocumentationDataModule
from zoo.train.tasks import LanguageModeling

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = {"dim": 16, "depth": 8, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 16}


def test_scores_are_their_formula():
    scores = Scores(4, rate=10.0, seed=0)
    scores.learn([[0, 1], [2], [3]], [1.0, 1.0, 1.0])
    assert not scores.a.any(), "equal rewards leave them"
    scores.learn([[0, 1], [2]], [0.0, 2.0])
    reward = (1 - torch.tensor(-2.0, dtype=torch.float64).exp()) / 2
    torch.testing.assert_close(scores.a, 10 * 0.25 * torch.stack([reward, reward, -reward, reward * 0]))


def test_what_does_not_matter_learns_less_often():
    """A layer whose damping never hurts, among others whose damping does."""
    scores, useless, drawn = Scores(8, rate=10.0, seed=1), 5, torch.zeros(8)
    for _ in range(400):
        sets = [scores.draw(4, 1.0) for _ in range(3)]
        scores.learn(sets, [0.1 * len(set(layers) - {useless}) for layers in sets])
        drawn[scores.draw(2, -1.0)] += 1
    assert scores.a.argmax() == useless and drawn[useless] < 0.5 * drawn.sum() / 8
    assert [len(set(scores.draw(count, -1.0))) for count in (1, 2, 8)] == [1, 2, 8]


def test_names_of_layers():
    assert numbered("blocks.3.mixer.q_proj") == "blocks.3" and numbered("head.weight") is None


def task(kind: str = "paca") -> LanguageModeling:
    return LanguageModeling(
        "transformer_nano", {**SMALL, "adapter": {"kind": kind, "rank": 2}}, lr=1e-2, schedule_steps=99
    )


@pytest.fixture
def fit(trainer, tmp_path: Path):
    def run(name: str, steps: int, watched: Any = None, **options: Any) -> tuple[dict[str, Any], ImportanceSampling]:
        seed_everything(0, verbose=False)
        sampling, made = ImportanceSampling(every_n_steps=3, **options), task()
        if watched is not None:
            made.on_train_batch_end = lambda *_: watched(made.trained, sampling)
        callbacks = [RNGState(), sampling, LastCheckpoint(1)]
        runner: Trainer = trainer(*callbacks, max_steps=steps, limit_val_batches=0, default_root_dir=tmp_path / name)
        data = DocumentationDataModule(seq_len=16, batch_size=2)
        runner.fit(made, data, ckpt_path=newest_checkpoint(tmp_path / name), weights_only=True)
        return {key: tensor.clone() for key, tensor in made.state_dict().items()}, sampling

    return run


def test_a_quarter_of_the_layers_learns_in_a_step_and_resumes(fit):
    seen: list[tuple[set[str], list[int]]] = []
    last: dict[str, Any] = {}

    def watch(model: Any, sampling: ImportanceSampling) -> None:
        now = {key: model.state_dict()[key].clone() for key in own_names(model) if "columns" in key}
        moved = {key.split(".columns")[0] for key in now if last and not torch.equal(now[key], last[key])}
        seen.append(({str(numbered(key)) for key in moved}, sampling.learning))
        last.update(now)

    whole, sampling = fit("whole", 7, watch)
    for moved, learning in seen[1:]:
        assert moved == {f"blocks.{index}" for index in learning} and len(learning) == 2
    assert sampling.scores.a.any() and len({tuple(learning) for _, learning in seen}) > 3
    fit("broken", 4)
    resumed, again = fit("broken", 7)
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert torch.equal(sampling.scores.a, again.scores.a)


@pytest.mark.parametrize("kind", ["paca", "lora", "dora"])
def test_damping_is_undone(kind):
    torch.manual_seed(0)
    model: Any = zoo.adapt(zoo.create_model("transformer_nano", **SMALL), kind, rank=2)
    for key, parameter in model.named_parameters():
        if "columns" in key or "lora_" in key:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    tokens, (adapter,) = torch.arange(20)[None], model.changes
    before, layer = model(tokens), model.blocks[2].mixer.q_proj
    x = torch.randn(3, 16)
    with adapter.damped(layer, 1.0):
        assert torch.equal(model(tokens), before)
    full = layer(x)
    with adapter.damped(layer, 0.0):
        none = layer(x)
    with adapter.damped(layer, 0.25):
        if kind != "dora":
            torch.testing.assert_close(layer(x), none + 0.25 * (full - none))
        assert not torch.allclose(model(tokens), before)
    assert torch.equal(model(tokens), before)


def test_models_without_layers_to_choose_from(trainer):
    made = LanguageModeling("transformer_nano", SMALL)
    with pytest.raises(ValueError, match="IST takes a model with adapters in layers that have numbers"):
        trainer(ImportanceSampling(), max_steps=1).fit(made, DocumentationDataModule(seq_len=16, batch_size=2))


def test_options_out_of_range_and_methods_that_cannot_be_damped():
    for options, message in [
        ({"share": 0.0}, "share and damped must be in"),
        ({"candidates": 1}, "candidates must be at least 2"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ImportanceSampling(**options)
    model: Any = zoo.adapt(zoo.create_model("transformer_nano"), "ladder")
    with pytest.raises(ValueError, match="what ladder adds cannot be damped"), model.changes[0].damped(None, 0.5):
        pass

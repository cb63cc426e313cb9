"""Policies: DPO and HyPO against exact sums over all answers, ReMax's gradient, and runs that resume."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import seed_everything
from torch import Tensor

import zoo
from zoo.train.callbacks import LastCheckpoint, RNGState, newest_checkpoint
from zoo.train.data import PreferencesDataModule, SortLetters, SyntheticDataModule
from zoo.train.policy import answered, log_probs, online_divergence, preference_loss, reinforce_loss, until_end
from zoo.train.tasks import PreferenceOptimization, ReMax

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = {"dim": 16, "depth": 1, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 16}
LETTERS, LENGTH, PROMPT = 5, 2, 3


@pytest.fixture
def policies() -> tuple[Any, Any]:
    """A policy and a reference over five letters, in float64."""
    options = {**SMALL, "vocab_size": LETTERS, "dtype": torch.float64, "initializer_range": 0.5}
    return zoo.create_model("transformer_nano", **options).eval(), zoo.create_model(
        "transformer_nano", **options
    ).eval()


@pytest.fixture
def every() -> Tensor:
    """All answers of two letters to one prompt, (25, 5)."""
    answers = torch.tensor(list(itertools.product(range(LETTERS), repeat=LENGTH)))
    return torch.cat([torch.tensor([[1, 4, 0]]).expand(len(answers), -1), answers], 1)


def gradient(model: Any, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in found])


def whole(model: Any, tokens: Tensor) -> Tensor:
    return log_probs(model, tokens, PROMPT).sum(1)


def test_log_probs_are_those_of_every_token(policies, every):
    model, _ = policies
    expected = F.cross_entropy(model(every)[:, 2:-1].flatten(0, 1), every[:, 3:].flatten(), reduction="none")
    torch.testing.assert_close(log_probs(model, every, PROMPT).flatten(), -expected)
    torch.testing.assert_close(whole(model, every).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("copies", [1, 2])
def test_the_divergence_of_answers_drawn_has_the_gradient_of_the_divergence(policies, every, copies):
    """In the mean over all answers, or all pairs of them, weighted by how likely they are."""
    model, reference = policies
    own, base = whole(model, every), whole(reference, every).detach()
    exact = gradient(model, (own.exp() * (own - base)).sum())
    groups = list(itertools.product(range(len(every)), repeat=copies))
    chances = own.detach()[torch.tensor(groups)].sum(1).exp()
    terms = [online_divergence(own[list(group)], base[list(group)], copies) for group in groups]
    torch.testing.assert_close(gradient(model, (chances * torch.stack(terms)).sum()), exact)
    same = online_divergence(own, own.detach(), 1)
    assert not gradient(model, same).any(), "at the reference no answers move the policy"


def test_remax_is_unbiased_and_blind_to_what_all_answers_are_worth(policies, every):
    model, _ = policies
    own, reward = log_probs(model, every, PROMPT), torch.arange(25.0, dtype=torch.float64).sin()
    chances, best = own.detach().sum(1).exp(), answered(model, every[:1, :PROMPT], LENGTH, seed=0, greedy=True)
    greedy = reward[(every == best).all(1)]

    def mean_gradient(offset: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row, chance in enumerate(chances):
            advantage = reward[row : row + 1] + offset - (greedy + offset)
            said = until_end(every[row : row + 1, PROMPT:], None)
            part = reinforce_loss(own[row : row + 1], said, advantage, gamma=1.0, penalties=None)
            total = total + LENGTH * chance * part
        return gradient(model, total)

    exact = -gradient(model, (own.sum(1).exp() * reward).sum())
    torch.testing.assert_close(mean_gradient(0.0), exact)
    torch.testing.assert_close(mean_gradient(7.0), exact)


def test_returns_are_discounted_to_the_end_of_an_answer():
    own = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    answers, advantages = torch.tensor([[3, 9, 9, 1], [2, 9, 0, 9]]), torch.tensor([2.0, -1.0], dtype=torch.float64)
    said = until_end(answers, 9)
    assert said.tolist() == [[True, True, False, False]] * 2 and until_end(answers, None).all()
    penalties = torch.rand(2, 4, dtype=torch.float64)
    loss = reinforce_loss(own, said, advantages, gamma=0.5, penalties=penalties)
    returns = advantages[:, None] * torch.tensor([[0.25, 0.5]], dtype=torch.float64) + penalties[:, :2]
    torch.testing.assert_close(loss, -(returns * own[:, :2]).sum() / 4)


def test_answers_are_drawn_from_the_policy(policies):
    model, _ = policies
    prompts = torch.tensor([[1, 4, 0]]).expand(4000, -1)
    said = answered(model, prompts, 1, seed=3)
    expected = model(prompts[:1])[0, -1].softmax(-1)
    torch.testing.assert_close(said[:, 3].bincount(minlength=5) / 4000, expected.float().detach(), atol=0.03, rtol=0)
    assert torch.equal(answered(model, prompts, 1, seed=3), said) and model.training is False
    ended = answered(model, prompts[:3], 6, seed=0, greedy=True, end=int(expected.argmax()))
    assert ended.shape == (3, 9) and (ended[:, 3:] == expected.argmax()).all()


def quiet(task: Any, rank: int = 0) -> Any:
    task.configure_model()
    task.log = task.log_dict = lambda *_, **__: None
    task._trainer = type("Alone", (), {"global_step": 0, "global_rank": rank, "callback_metrics": {}})()
    return task


@pytest.fixture(scope="module")
def pairs() -> PreferencesDataModule:
    return PreferencesDataModule(
        prompt_length=8, answer_length=6, train_pairs=32, val_pairs=8, test_pairs=8, batch_size=4
    )


def test_without_a_divergence_it_is_dpo(pairs):
    """The first weights are the reference's: margins are 0, and ln 2 is what DPO loses."""
    batch = next(iter(pairs.train_dataloader()))
    options = {"model": "transformer_nano", "model_args": {"pretrained": True}, "reference": "transformer_nano"}
    task = quiet(PreferenceOptimization(**options, online_weight=0.0, beta=0.3))
    first = task.training_step(batch, 0)
    torch.testing.assert_close(first.detach(), torch.tensor(2.0).log())
    with torch.no_grad():
        for parameter in task.trained.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    reference = zoo.create_model("transformer_nano", pretrained=True).eval()
    tokens, labels = (part.flatten(0, 1) for part in batch)

    def scores(model: Any) -> Tensor:
        log_p = model(tokens)[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
        return (log_p * (labels[:, 1:] != -100)).sum(1)

    margins = (scores(task.trained) - scores(reference).detach()).view(-1, 2)
    expected = -F.logsigmoid(0.3 * (margins[:, 0] - margins[:, 1])).mean()
    found = task.training_step(batch, 0)
    torch.testing.assert_close(found, expected)
    bare = preference_loss(task._margins(task.trained, batch), 0.3)
    assert torch.equal(gradient(task.trained, found), gradient(task.trained, bare))
    task.online_weight = 0.5
    assert not torch.equal(gradient(task.trained, task.training_step(batch, 0)), gradient(task.trained, bare))
    assert not [name for name in task.state_dict() if "reference" in name]


def test_the_loss_of_a_far_pair_is_finite(pairs):
    options = {"model_args": {"pretrained": True}, "reference": "transformer_nano"}
    task, said = quiet(PreferenceOptimization("transformer_nano", **options)), {}
    task._trainer.datamodule = pairs
    task._margins = lambda *_: torch.tensor([[-2000.0, 0.0]]).expand(4, -1)
    task.log_means = lambda split, **values: said.update(values)
    task.evaluate(next(iter(pairs.train_dataloader())), 0, "val")
    torch.testing.assert_close(said["loss"], torch.full((4,), 200.0))


def test_preferences_have_fewer_vowels(pairs):
    tokens, labels = next(iter(pairs.train_dataloader()))
    assert tokens.shape == labels.shape == (4, 2, 14) and torch.equal(tokens[:, 0, :8], tokens[:, 1, :8])
    assert (labels[..., :8] == -100).all() and torch.equal(labels[..., 8:], tokens[..., 8:])
    vowels = [[sum(chr(c) in "aeiouAEIOU" for c in row[8:]) for row in pair] for pair in tokens.tolist()]
    assert all(first < second for first, second in vowels)
    with pytest.raises(ValueError, match="preferences are of bytes: vit_nano has another"):
        PreferencesDataModule("vit_nano").setup()


def test_sorted_letters():
    task = SortLetters(letters=5, count=3)
    prompts, targets = task.generate(torch.arange(4), 0)
    assert (prompts[:, 3] == 5).all() and torch.equal(prompts[:, :3].sort(1).values, targets) and task.vocab_size == 6
    wrong = targets.clone()
    wrong[:, 0] = (wrong[:, 0] + 1) % 5
    torch.testing.assert_close(task.reward(wrong, targets), torch.full((4,), 2 / 3))


@pytest.mark.parametrize("kind", ["remax", "hypo"])
def test_a_resumed_run_ends_the_same(kind, trainer, pairs, tmp_path: Path):
    def run(folder: str, steps: int) -> dict[str, Tensor]:
        seed_everything(0, verbose=False)
        if kind == "remax":
            options: dict[str, Any] = {"answer_length": 2, "baseline": "greedy"}
            task: Any = ReMax("transformer_nano", {**SMALL, "vocab_size": 5}, **options, lr=1e-2, schedule_steps=9)
            data: Any = SyntheticDataModule(SortLetters(4, 2), batch_size=8, train_samples=64, val_samples=8)
        else:
            start = {"pretrained": True}
            task = PreferenceOptimization("transformer_nano", start, reference="transformer_nano", schedule_steps=9)
            data = pairs
        callbacks = [RNGState(), LastCheckpoint(1)]
        made = trainer(*callbacks, max_steps=steps, limit_val_batches=1, default_root_dir=tmp_path / folder)
        made.fit(task, data, ckpt_path=newest_checkpoint(tmp_path / folder), weights_only=True)
        assert made.global_step == steps
        found = made.validate(task, data, verbose=False)[0]
        assert found.keys() == {f"val/{name}" for name in NAMES[kind]} and 0 <= found["val/reward"] <= 1
        return {name: tensor.clone() for name, tensor in task.state_dict().items() if name.startswith("model.")}

    whole = run("whole", 4)
    run("parts", 2)
    resumed = run("parts", 4)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_the_reward_rises(trainer):
    """From a third, which chance has, by what answers are worth alone."""
    seed_everything(0, verbose=False)
    sizes = {"dim": 32, "depth": 1, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 32, "vocab_size": 4}
    task = ReMax("transformer_nano", sizes, answer_length=2, gamma=1.0, lr=2e-2, weight_decay=0.0, schedule_steps=60)
    data = SyntheticDataModule(SortLetters(3, 2), batch_size=64, train_samples=64 * 40, val_samples=200)
    made = trainer(max_epochs=1)
    before = made.validate(task, data, verbose=False)[0]
    made.fit(task, data)
    after = made.validate(task, data, verbose=False)[0]
    assert before["val/reward"] < 0.45 and after["val/reward"] > 0.6, (before, after)


NAMES = {"remax": ("reward", "greedy"), "hypo": ("loss", "accuracy", "kl", "reward", "win")}


def test_errors(trainer):
    with pytest.raises(ValueError, match="beta must be above 0 and online_weight at least 0"):
        PreferenceOptimization("transformer_nano", reference="transformer_nano", beta=0.0)
    with pytest.raises(ValueError, match="baseline must be 'greedy' or 'none'"):
        ReMax("transformer_nano", answer_length=2, baseline="critic")  # pyright: ignore[reportArgumentType]
    from zoo.train.data import MQAR

    data = SyntheticDataModule(MQAR(seq_len=16, vocab_size=20, num_kv_pairs=2), batch_size=4)
    with pytest.raises(ValueError, match="answers are rewarded by the data's task, and MQAR has no reward"):
        trainer(max_steps=1, limit_val_batches=0).fit(ReMax("transformer_nano", answer_length=2), data)

"""Tasks: the loss that is minimised, the metrics that are reported, the optimiser and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn

import zoo
from zoo.train.data import MQAR, DigitsDataModule, DocumentationDataModule, SyntheticDataModule
from zoo.train.optim import build_optimizer, warmup_cosine
from zoo.train.tasks import ImageClassification, LanguageModeling, Task
from zoo.train.tasks.metrics import Mean

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
MakeTrainer = Callable[..., Trainer]


def logged(task: Task) -> dict[str, Any]:
    """What a task logs outside a trainer, from now on."""
    values: dict[str, Any] = {}
    task.log = lambda name, value, **_: values.update({name: value})  # pyright: ignore[reportAttributeAccessIssue]
    task.log_dict = lambda many, **_: values.update(many)  # pyright: ignore[reportAttributeAccessIssue]
    return values


def test_classification_loss_smooths_hard_targets_only(toy: type[nn.Module]) -> None:
    task = ImageClassification(toy(dropout=0.0), label_smoothing=0.1, auxiliary_weight=0.5)
    task.configure_model()
    values = logged(task)
    images, classes = torch.randn(6, 1, 8, 8), torch.arange(6)
    logits, side = task.trained(images), 16.0  # sum of (A_log - 1)^2 over 4 x 4 zeros
    smooth = torch.full((6, 10), 0.01).scatter(1, classes[:, None], 0.91)
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.training_step((images, classes), 0), expected + 0.5 * side)
    torch.testing.assert_close(values["train/loss"], expected.detach())
    assert float(values["train/balance"]) == side
    soft = torch.rand(6, 10).softmax(1)
    torch.testing.assert_close(
        task.training_step((images, soft), 0), -(soft * logits.log_softmax(1)).sum(1).mean() + 0.5 * side
    )


def test_classification_metrics_count_every_image_once(toy: type[nn.Module], trainer: MakeTrainer) -> None:
    task, data = ImageClassification(toy()), DigitsDataModule(eval_batch_size=100)
    metrics = trainer().test(task, datamodule=data, verbose=False)[0]
    loader = DigitsDataModule(eval_batch_size=360).test_dataloader()
    images, classes = (torch.cat(parts) for parts in zip(*loader, strict=True))
    with torch.no_grad():
        logits = task.trained.eval()(images)
    ranks = (logits > logits.gather(1, classes[:, None])).sum(1)
    assert len(classes) == 359
    assert metrics["test/loss"] == pytest.approx(float(F.cross_entropy(logits.double(), classes)), rel=1e-6)
    assert metrics["test/acc1"] == pytest.approx(float((ranks == 0).double().mean()))
    assert metrics["test/acc5"] == pytest.approx(float((ranks < 5).double().mean()))


@pytest.mark.parametrize("eval_batch_size", [3, 64])
def test_bits_per_byte_weights_every_byte_alike(trainer: MakeTrainer, eval_batch_size: int) -> None:
    data = DocumentationDataModule(seq_len=64, eval_batch_size=eval_batch_size, val_fraction=0.01)
    task = LanguageModeling("mamba2_nano")
    metrics = trainer().validate(task, datamodule=data, verbose=False)[0]
    nats, scored = 0.0, 0
    with torch.no_grad():
        for tokens, labels in data.val_dataloader():  # pyright: ignore[reportGeneralTypeIssues]
            logits = task.trained.eval()(tokens)[:, :-1].flatten(0, 1).double()
            nats += float(F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"))
            scored += int((labels[:, 1:] != -100).sum())
    assert scored == sum(len(document.encode()) for document in data.documents("val"))
    assert metrics["val/loss"] == pytest.approx(nats / scored, rel=1e-5)
    assert metrics["val/bits_per_byte"] == pytest.approx(nats / scored / math.log(2), rel=1e-5)


def test_accuracy_is_of_the_answers(trainer: MakeTrainer) -> None:
    data = SyntheticDataModule(MQAR(seq_len=16, vocab_size=20, num_kv_pairs=2), val_samples=50)

    class Oracle(nn.Module):
        """Knows the answers to half of the queries: those at even values."""

        def forward(self, tokens: Tensor, *, labels: Tensor | None = None) -> Tensor:
            answers = dict(zip(map(str, source_tokens.tolist()), source_labels, strict=True))
            labels = torch.stack([answers[str(row)] for row in tokens.tolist()])
            known = torch.where((labels >= 0) & (labels % 2 == 0), labels, 0).roll(-1, 1)
            return F.one_hot(known, 20).float() * 9

    data.setup()
    source_tokens, source_labels = data.sources["val"].fetch(torch.arange(50), 0)
    answers = source_labels[source_labels >= 0]
    metrics = trainer().validate(LanguageModeling(Oracle(), accuracy=True), datamodule=data, verbose=False)[0]
    assert metrics["val/accuracy"] == pytest.approx(float((answers % 2 == 0).double().mean()))
    assert "val/bits_per_byte" not in metrics


def test_mean_is_exact() -> None:
    mean, values = Mean(), torch.rand(200, 500) + 1000
    for row in values:
        mean.update(row[:400])
        mean.update(row[400:].mean(), count=100)
    assert float(mean.compute()) == pytest.approx(float(values.double().mean()), rel=1e-8)
    mean.update(torch.tensor(torch.nan))
    assert mean.compute().isnan()
    mean.reset()
    mean.update(torch.tensor([1.0, 2.0]))
    mean.update(torch.tensor(9.0), count=torch.tensor(2))
    assert float(mean.compute()) == 5.25


def test_a_batch_without_scored_tokens_changes_nothing() -> None:
    task = LanguageModeling("mamba2_nano")
    task.configure_model()
    tokens = torch.randint(256, (2, 16))
    task._evaluate(tokens, tokens)
    before = float(task.mean_loss.compute())
    task._evaluate(tokens, torch.full_like(tokens, -100))
    assert float(task.mean_loss.compute()) == before > 0


def test_decay_spares_vectors_biases_and_what_the_model_names() -> None:
    model = zoo.create_model("mamba2_nano")
    optimizer = build_optimizer(model, "adamw", lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    spared = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    named = model.no_weight_decay()  # pyright: ignore[reportCallIssue]
    assert named and len(decayed) + len(spared) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or name.endswith(".bias") or name in named
        assert (id(parameter) in spared) == exempt, name
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(
    "wrap", [torch.compile, lambda m: nn.DataParallel(torch.compile(m))], ids=["compile", "parallel"]
)
def test_wrapped_models_have_the_same_groups(wrap: Callable[..., nn.Module]) -> None:
    for name in ("mamba2_nano", "vim_nano"):
        model = zoo.create_model(name)
        plain, wrapped = (
            build_optimizer(m, "adamw", lr=1e-3, weight_decay=0.1).param_groups for m in (model, wrap(model))
        )
        for one, other in zip(plain, wrapped, strict=True):
            assert one["weight_decay"] == other["weight_decay"]
            assert [id(p) for p in one["params"]] == [id(p) for p in other["params"]]


@pytest.mark.parametrize("name", ["adan", "adanw", "cadan", "cadanw"])
def test_optimizers_of_three_betas(name: str) -> None:
    for betas, expected in (((0.9, 0.999), (0.98, 0.92, 0.99)), ((0.8, 0.9, 0.95), (0.8, 0.9, 0.95))):
        task = ImageClassification("vit_nano", optimizer=name, betas=betas)
        assert task._optimizer(nn.Linear(2, 2)).param_groups[0]["betas"] == expected
    with pytest.raises(ValueError, match=rf"'{name}' takes 3 betas, got \(0.9, 0.95\)"):
        ImageClassification("vit_nano", optimizer=name, betas=(0.9, 0.95))


def test_predict_reads_our_loaders(trainer: MakeTrainer) -> None:
    task, data = ImageClassification("vit_nano", {"depth": 1}), DigitsDataModule(eval_batch_size=200)
    logits = torch.cat(trainer().predict(task, datamodule=data))
    assert logits.shape == (359, 10)
    data.setup()
    with torch.no_grad():
        torch.testing.assert_close(logits[:3], task.trained(data.sources["test"].fetch(torch.arange(3), 0)[0]))
    text = DocumentationDataModule(seq_len=32, test_fraction=0.001)
    outputs = trainer(limit_predict_batches=1).predict(LanguageModeling("mamba2_nano", {"depth": 1}), datamodule=text)
    assert outputs is not None and outputs[0].shape[1:] == (32, 256)


def test_making_a_task_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    LanguageModeling("mamba2_nano").sketch()
    assert torch.equal(torch.get_rng_state(), before), "else initial weights would depend on the strategy"


def test_schedule() -> None:
    factors = [warmup_cosine(step, 4, 12, 0.1) for step in range(15)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[8] == pytest.approx(0.55)
    assert factors[12:] == pytest.approx([0.1] * 3)
    assert factors[4:12] == sorted(factors[4:12], reverse=True)
    assert warmup_cosine(0, 0, 10) == 1
    assert warmup_cosine(10**6, 4, math.inf, 0.1) == 1


def test_schedule_spans_the_run(toy: type[nn.Module], trainer: MakeTrainer) -> None:
    task = ImageClassification(toy(), lr=0.01, min_lr=0.001, warmup_steps=2)
    run = trainer(max_epochs=3, limit_train_batches=8, limit_val_batches=0, accumulate_grad_batches=2)
    run.fit(task, datamodule=DigitsDataModule(batch_size=16))
    assert run.global_step == 12
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"model": "vim_nanoo"}, ValueError, "vim_nano"),
        ({"model": "vim_nano", "model_args": {"dimm": 3}}, TypeError, "did you mean 'dim'"),
        ({"model": nn.Identity(), "model_args": {"dim": 3}}, TypeError, "Identity"),
        ({"model": "vim_nano", "lr": -1.0}, ValueError, "lr=-1.0"),
        ({"model": "vim_nano", "optimizer": "adamx"}, ValueError, "no optimizer 'adamx', did you mean"),
        ({"model": "vim_nano", "optimizer_args": {"betta": 1}}, ValueError, "'adamw' cannot be made with .*'betta'"),
        ({"model": "vim_nano", "betas": (0.9, 2.0)}, ValueError, "'adamw' cannot be made with .*2.0"),
        ({"model": "vim_nano", "warmup_steps": -1}, ValueError, "warmup_steps"),
        ({"model": "vim_nano", "label_smoothing": 1.0}, ValueError, "label_smoothing"),
    ],
)
def test_wrong_arguments_fail_at_once(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ImageClassification(**options)

"""Distillation: the loss with a teacher's part, the teacher's own preparation, and what a checkpoint leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.divergence import TopK
from zoo.train.data import DigitsDataModule
from zoo.train.tasks import ImageClassification, LanguageModeling

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
STUDENT = {"depth": 1, "dim": 16, "mean": (0.5,), "std": (0.25,)}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return zoo.save_model(zoo.create_model("vit_nano", depth=1, mean=(0.1,), std=(0.5,)), tmp_path / "teacher")


@pytest.mark.parametrize("kind", ["hard", "soft", "top_k"])
def test_loss_is_that_of_the_paper(kind: str, teacher: Path) -> None:
    options = {"distillation": kind, "distillation_weight": 0.3, "temperature": 2.0, "top_k": {"top_k": 3}}
    task = ImageClassification("vit_nano", STUDENT, teacher=f"local-dir:{teacher}", **options)
    task.configure_model()
    task.log = task.log_dict = lambda *_, **__: None
    images, targets = torch.randn(6, 1, 8, 8), torch.arange(6)
    pixels = images * 0.25 + 0.5
    taught = zoo.create_model(f"local-dir:{teacher}").eval()((pixels - 0.1) / 0.5).double().detach()
    logits = task.trained(images).double()
    if kind == "hard":
        part = F.cross_entropy(logits, taught.argmax(1))
    else:
        p, q = (taught / 2).softmax(1), (logits / 2).softmax(1)
        part = 4 * (p * (p / q).log()).sum(1).mean()
        if kind == "top_k":
            best = torch.zeros_like(p).scatter(1, p.topk(3).indices, 1.0) > 0
            terms = torch.where(best, p * (p / q).log() - p + q, q * (q / p).log() - q + p)
            part = 4 * terms.sum(1).mean()
    expected = 0.7 * F.cross_entropy(logits, targets) + 0.3 * part
    torch.testing.assert_close(task.training_step((images, targets), 0), expected.float())


def test_a_teacher_is_frozen_and_in_no_checkpoint(teacher: Path, trainer) -> None:
    task = ImageClassification("vit_nano", STUDENT, teacher=f"local-dir:{teacher}")
    trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=0).fit(task, datamodule=DigitsDataModule())
    assert not [name for name in task.state_dict() if "teacher" in name]
    before = zoo.create_model(f"local-dir:{teacher}").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.teacher.model.state_dict().items())


def test_a_language_model_learns_from_another() -> None:
    """The loss by hand, with labels that are not counted; the teacher stays as it is."""
    options = {"teacher": "transformer_nano", "distillation": "top_k", "distillation_weight": 0.75}
    task = LanguageModeling("mamba2_nano", {"depth": 1}, **options, top_k={"top_k": 5, "head": "reverse"})
    task.configure_model()
    task.log = task.log_dict = lambda *_, **__: None
    tokens = torch.randint(0, 256, (2, 12))
    labels = tokens.clone()
    labels[0, :5] = -100
    teacher = zoo.create_model("transformer_nano", pretrained=True).eval()
    scored = labels[:, 1:] != -100
    taught, logits = teacher(tokens)[:, :-1][scored], task.trained(tokens)[:, :-1][scored]
    part = TopK(top_k=5, head="reverse")(logits.log_softmax(-1), taught.log_softmax(-1)).mean()
    expected = 0.25 * task.trained(tokens, labels=labels) + 0.75 * part
    torch.testing.assert_close(task.training_step((tokens, labels), 0), expected)
    assert not [name for name in task.state_dict() if "teacher" in name or "distillation" in name]
    with pytest.raises(ValueError, match="has vocab_size 256, the student 300"):
        LanguageModeling("mamba2_nano", {"depth": 1, "vocab_size": 300}, **options).configure_model()


def test_a_teacher_that_does_not_fit(teacher: Path) -> None:
    task = ImageClassification("vit_nano", {**STUDENT, "num_classes": 7}, teacher=f"local-dir:{teacher}")
    with pytest.raises(ValueError, match="has num_classes 10, the student 7"):
        task.configure_model()
    with pytest.raises(ValueError, match=r"temperature above 0, got 'soft', 0\.5 and 0"):
        ImageClassification("vit_nano", teacher="vit_nano", distillation="soft", temperature=0)
    with pytest.raises(ValueError, match="did you mean 'vit_nano'"):
        ImageClassification("vit_nano", teacher="vit_nanoo")
    with pytest.raises(ValueError, match="top_k and tail_weight must be at least 0"):
        ImageClassification("vit_nano", teacher="vit_nano", distillation="top_k", top_k={"top_k": -1})

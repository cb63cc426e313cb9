"""Linear attention learns from the attention that it was: the loss of the first stage, what learns when, the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.train.callbacks import ExportModel
from zoo.train.data import DocumentationDataModule
from zoo.train.tasks import Linearization

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 16}
SHARED, NEW, LORA = "blocks.0.mlp.w1.weight", "blocks.1.mixer.memory.q_map.weight", "blocks.0.mixer.q_proj.lora_B"


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return f"local-dir:{zoo.save_model(zoo.create_model('transformer_nano', **SMALL), tmp_path / 'teacher')}"


def task(teacher: str, **options: Any) -> Linearization:
    return Linearization("lizard_nano", {**SMALL, "anchor_window": 4}, teacher=teacher, **options)


def test_the_first_loss_is_each_layers_error_on_what_the_teachers_reads(teacher):
    made = task(teacher)
    made.configure_model()
    tokens = torch.arange(40).reshape(2, 20)
    model: Any = zoo.create_model(teacher).eval()
    x, expected = model.embed(tokens), []
    for block, linear in zip(model.blocks, made.trained.mixers, strict=True):
        expected.append((linear(block.norm(x)) - block.mixer(block.norm(x))).square().mean())
        x = block(x)
    loss = made.transfer_loss(tokens)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    loss.backward()
    assert made.trained.get_parameter(NEW).grad.any() and made.trained.get_parameter(SHARED).grad is None


def test_what_learns_when_and_the_end(teacher, trainer, tmp_path):
    """New parameters in both stages, LoRA in the second alone, which is merged; the teacher never, and nowhere kept."""
    made, before = task(teacher, transfer=0.5, rank=2, lr=1e-2), zoo.create_model(teacher).state_dict()
    seen = []

    def note(*_: Any) -> None:
        adapters = {name: p for name, p in made.trained.named_parameters() if name.startswith(LORA)}
        seen.append((made.transferring, sum(p.abs().sum().item() for p in adapters.values())))
        assert "teacher" not in "".join(made.state_dict())

    made.on_train_batch_end = note
    data = DocumentationDataModule(seq_len=16, batch_size=2)
    trainer(ExportModel(), max_steps=4, limit_val_batches=1).fit(made, datamodule=data)
    assert [(stage, total > 0) for stage, total in seen] == [
        (True, False),
        (False, False),
        (False, True),
        (False, True),
    ]
    again = zoo.create_model(f"local-dir:{tmp_path / 'model'}").state_dict()
    assert torch.equal(again[SHARED], before[SHARED]) and not torch.equal(again[NEW], torch.eye(8).repeat(2, 1, 1))
    assert not torch.equal(again["blocks.0.mixer.q_proj.weight"], before["blocks.0.mixer.q_proj.weight"])
    taught: Any = made.teacher.model
    assert all(torch.equal(tensor, before[name]) for name, tensor in taught.state_dict().items())


def test_rates_of_both_stages(teacher):
    made = task(teacher, transfer=0.25, lr=1e-2, finetune_lr=5e-3, warmup_steps=1, schedule_steps=40)
    rates = [made._lr_factor(step) for step in range(40)]
    assert rates[0] == 0.5 and rates[1] == 1 and rates[9] < 0.05 and rates[10] == 0.25 and rates[11] == 0.5
    assert rates[1:10] == sorted(rates[1:10], reverse=True) and rates[11:] == sorted(rates[11:], reverse=True)


def test_what_cannot_be_learnt(teacher):
    with pytest.raises(ValueError, match="the model has no linear attention to train"):
        Linearization("transformer_nano", SMALL, teacher=teacher).configure_model()
    with pytest.raises(ValueError, match=r"is no model that this one was: embedding\.weight does not fit"):
        Linearization("lizard_nano", teacher=teacher).configure_model()
    with pytest.raises(ValueError, match=r"transfer must be in \[0, 1\] and rank at least 1, got 1.5 and 8"):
        task(teacher, transfer=1.5)
    with pytest.raises(ValueError, match="unknown model"):
        task("transformer_nanoo")

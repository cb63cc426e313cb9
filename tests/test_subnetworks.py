"""Parts of a transformer: views of its parameters, models by themselves, and training in which both learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.subnetworks import Subnetwork, run, sort_neurons, swiglus
from zoo.train.callbacks import LastCheckpoint, RNGState, newest_checkpoint
from zoo.train.data import DocumentationDataModule
from zoo.train.tasks import ElasticLanguageModeling
from zoo.train.tasks.elastic import Space

SMALL = {"dim": 16, "depth": 3, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 12}


def built(**options: Any) -> Any:
    return zoo.create_model("transformer_nano", **{**SMALL, "dtype": torch.float64, **options}).eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (2, 9))


def test_the_whole_is_the_model_bit_for_bit_and_parts_are_views():
    model, x = built(), tokens()
    whole = Subnetwork(blocks=(0, 1, 2), widths=(12, 12, 12))
    assert torch.equal(run(model, whole, x), model(x))
    part = Subnetwork(blocks=(0, 2), widths=(5, 12))
    for name, tensor in part.parts(model).items():
        owner = {"blocks.0": "blocks.0", "blocks.1": "blocks.2"}[name[:8]] + name[8:]
        assert tensor.data_ptr() == model.get_parameter(owner).data_ptr(), name
    before = list(model.blocks)
    run(model, part, x, labels=x).backward()
    assert list(model.blocks) == before
    for name, gradient in ((n, p.grad) for n, p in model.named_parameters()):
        assert (gradient is None) == name.startswith("blocks.1."), name
    gradients = model.blocks[0].mlp.w1.weight.grad
    assert gradients[:5].any(1).all() and not gradients[5:].any()


@torch.no_grad()
def test_taken_out_it_computes_the_same_and_is_saved(tmp_path: Path):
    model, x = built(), tokens()
    part = Subnetwork(blocks=(0, 2), widths=(5, 7))
    expected = run(model, part, x)
    alone = zoo.subnetwork(built(), (0, 2), (5, 7))
    alone.load_state_dict({**model_part(model, part)})
    torch.testing.assert_close(alone(x), expected, rtol=0, atol=1e-14)
    expected = alone(x)
    assert [layer.w2.in_features for layer in swiglus(alone)] == [5, 7]
    zoo.save_model(alone, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype="auto").eval()
    assert torch.equal(again(x), expected)
    state = again.init_state(2)
    steps = torch.cat([again(x[:, t : t + 1], state) for t in range(9)], 1)
    torch.testing.assert_close(steps, expected)
    said = zoo.generate(again.float(), x[:, :4], 3, temperature=0)
    assert said.shape == (2, 7)


def model_part(model: Any, part: Subnetwork) -> dict[str, torch.Tensor]:
    kept = {f"blocks.{old}.": f"blocks.{new}." for new, old in enumerate(part.blocks)}
    state = {}
    for name, tensor in model.state_dict().items():
        prefix = next((old for old in kept if name.startswith(old)), None)
        if prefix or not name.startswith("blocks."):
            state[name.replace(prefix, kept[prefix]) if prefix else name] = tensor
    return state | part.parts(model)


@torch.no_grad()
def test_sorting_hidden_numbers_changes_no_output_and_puts_the_largest_first():
    model, x = built(), tokens()
    expected = model(x)
    sort_neurons(model)
    torch.testing.assert_close(model(x), expected)
    for layer in swiglus(model):
        product = layer.w1.weight.norm(dim=1) * layer.w3.weight.norm(dim=1) * layer.w2.weight.norm(dim=0)
        assert torch.equal(product, product.sort(descending=True).values)


def test_spaces():
    space = Space(4, (4, 8), least=2)
    assert space.sizes == [2] * 8 and space.part(space.whole) == Subnetwork(blocks=(0, 1, 2, 3), widths=(8,) * 4)
    assert space.part((0, 0, 0, 1, 1, 0, 0, 1)) == Subnetwork(blocks=(0, 3), widths=(8, 8))
    assert space.part((0, 1, 0, 1, 0, 1, 0, 0)) == space.part((0, 1, 0, 1, 1, 1, 1, 0))
    drawn = {space.drawn(seed) for seed in range(60)}
    assert len(drawn) > 20 and space.drawn(3) == space.drawn(3)
    with pytest.raises(ValueError, match="widths must rise"):
        Space(2, (8, 4))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_parts_learn_with_the_whole_and_a_resumed_run_ends_the_same(make, tmp_path: Path):
    def fit(folder: str, steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        task = ElasticLanguageModeling("transformer_nano", SMALL, widths=(4, 12), schedule_steps=9)
        where = tmp_path / folder
        trainer = make(RNGState(), LastCheckpoint(1), max_steps=steps, default_root_dir=str(where))
        data = DocumentationDataModule(seq_len=16, batch_size=2)
        trainer.fit(task, data, ckpt_path=newest_checkpoint(where), weights_only=True)
        return {name: tensor.clone() for name, tensor in task.state_dict().items()}

    whole = fit("whole", 4)
    fit("parts", 2)
    resumed = fit("parts", 4)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())

    task = ElasticLanguageModeling("transformer_nano", SMALL, widths=(4, 12), parts=2)
    task.configure_model()
    task.log = task.log_dict = lambda *_, **__: None
    task._trainer = type("Alone", (), {"global_step": 7})()
    x = tokens()
    from zoo.train.data.rng import derive_seed

    parts = [run(task.trained, task.space.drawn(derive_seed(0, 7, 1, number)), x, labels=x) for number in range(2)]
    expected = (task.trained(x, labels=x) + sum(parts)) / 3
    torch.testing.assert_close(task.training_step((x, x), 1), expected)


@pytest.fixture
def make():
    from lightning import Trainer

    def made(*callbacks: Any, **options: Any) -> Trainer:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        return Trainer(accelerator="cpu", limit_val_batches=0, callbacks=list(callbacks), **quiet, **options)

    return made


@pytest.mark.parametrize(
    ("name", "blocks", "widths", "message"),
    [
        ("transformer_nano", (0, 3), (), r"blocks must be numbers in \[0, 3\), ascending, got \[0, 3\]"),
        ("transformer_nano", (1, 0), (), "ascending"),
        ("transformer_nano", (0, 1), (5,), "widths must be one a block kept, got 1 for 2"),
        ("transformer_nano", (0,), (385,), r"a width must be in \[1, 384\], got 385"),
        ("mamba2_nano", (0,), (), "whose blocks have SwiGLUs: Mamba2LanguageModel not"),
        ("vit_nano", (0,), (), "whose blocks have SwiGLUs"),
    ],
)
def test_errors(name, blocks, widths, message):
    model: Any = zoo.create_model(name)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        zoo.subnetwork(model, blocks, widths)
    assert list(model.state_dict()) == before

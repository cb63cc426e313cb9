"""KOALA: which blocks are kept, a part of a U-Net that is the whole learns nothing, the loss written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.generative.koala import SITES, distances, inherit, matched, origin
from zoo.train.tasks import UNetDistillation

LARGE = {"dims": (8, 16, 16), "depths": (0, 2, 3), "mid_depth": 2, "num_layers": 2, "norm_groups": 4, "head_dim": 8,
         "context_dim": 6}  # fmt: skip
SMALL = {**LARGE, "depths": (0, 1, 2), "mid_depth": None, "num_layers": 1}


def built(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    model: Any = zoo.create_model("unet_nano", dtype=torch.float64, **options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def noisy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), torch.tensor([4, 10])


@pytest.mark.parametrize("name", ["koala_1b", "koala_700m"])
def test_blocks_of_koala_are_those_of_sdxl(name):
    """Every tensor has the shape of the one that it begins with; blocks keep their order."""
    large, small = (zoo.create_model(n, device="meta") for n in ("sdxl_unet", name))
    tensors, configs = large.state_dict(), (small.config, large.config)
    for key, tensor in small.state_dict().items():
        assert tensors[origin(key, *configs)].shape == tensor.shape, key
    pairs = matched(small, large)  # pyright: ignore[reportArgumentType]
    config: Any = small.config
    down = sum(depth * config.num_layers for depth in config.depths)
    up = sum(depth * (config.num_layers + 1) for depth in config.depths)
    assert len(pairs) == len(set(pairs.values())) == down + up + (config.mid_depth or 0)
    order = [n for n, _ in large.named_modules()]
    places = [order.index(other) for other in pairs.values()]
    assert places == sorted(places)


def test_a_small_unet_begins_with_the_blocks_that_it_keeps():
    large, small = built(**LARGE), inherit(built(1, **SMALL), built(**LARGE))
    down, up = small.down_blocks[1], small.up_blocks[0]
    assert torch.equal(down.resnets[0].conv1.weight, large.down_blocks[1].resnets[0].conv1.weight)
    assert torch.equal(up.resnets[1].conv1.weight, large.up_blocks[0].resnets[2].conv1.weight)
    first, kept = large.up_blocks[0].attentions[2], up.attentions[1]
    assert len(kept.transformer_blocks) == 2
    for own, other in zip(kept.transformer_blocks, first.transformer_blocks, strict=False):
        assert torch.equal(own.attn1.to_q.weight, other.attn1.to_q.weight)
    assert torch.isfinite(small(*noisy())).all()


@pytest.mark.parametrize("site", list(SITES))
def test_a_whole_copy_has_nothing_to_learn(site):
    large = built(**LARGE)
    copy = inherit(built(1, **LARGE), large)
    pairs = matched(copy, large, site)
    assert pairs and all(own == other for own, other in pairs.items())
    inputs = noisy()
    made, output, features = distances(copy, large, *inputs, pairs)
    assert output == 0 and features == 0 and torch.equal(made, large.velocity(*inputs))


def test_distances_are_of_the_attention_of_each_block():
    """Against blocks that are called one by one."""
    large, small, inputs = built(**LARGE), built(1, **SMALL), noisy()
    pairs = matched(small, large)
    seen: dict[str, list[torch.Tensor]] = {"large": [], "small": []}
    for key, model in (("large", large), ("small", small)):
        for name, module in model.named_modules():
            if name.endswith("attn1") and (key == "small" or name in pairs.values()):
                module.register_forward_hook(lambda *args, k=key: seen[k].append(args[2]))
    made, output, features = distances(small, large, *inputs, pairs)
    wanted = sum((a - b).square().mean() for a, b in zip(seen["small"], seen["large"], strict=True))
    assert len(seen["small"]) == 1 + 2 + 2 * 2 + 2 * 1
    torch.testing.assert_close(features, wanted)
    torch.testing.assert_close(output, (small.velocity(*inputs) - large.velocity(*inputs)).square().mean())
    (output + features).backward()
    assert all(p.grad is None for p in large.parameters()) and made.requires_grad
    assert not any(len(module._forward_hooks) > 1 for module in large.modules())


def test_the_task_starts_at_the_teachers_blocks_and_learns_all_three():
    torch.manual_seed(0)
    task = UNetDistillation("unet_nano", {"depths": (0, 1), "mid_depth": None}, feature_weight=0.5)
    task.configure_model()
    logged: dict[str, torch.Tensor] = {}
    task.log_dict = lambda values, **_: logged.update(values)  # pyright: ignore[reportAttributeAccessIssue]
    batch = torch.randn(4, 1, 8, 8), torch.arange(4)
    task.training_step(batch, 0).backward()
    parts = {name.removeprefix("train/"): value.item() for name, value in logged.items()}
    assert parts["loss"] == pytest.approx(parts["task"] + parts["output"] + 0.5 * parts["features"], rel=1e-5)
    (teacher,) = task.taught
    student: Any = task.trained
    assert torch.equal(student.conv_in.weight, teacher.conv_in.weight) and teacher.conv_in.weight.grad is None
    assert not any(name.startswith("taught") for name in task.state_dict())
    whole = UNetDistillation("unet_nano")
    whole.configure_model()
    whole.log_dict = task.log_dict
    whole.training_step(batch, 0)
    assert logged["train/output"] == 0 and logged["train/features"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("unet_nano", {"depths": (0, 3)}), r"no more blocks than the larger one.*depths \(0, 3\) of \(0, 2\)"),
        (("unet_nano", {"dims": (32, 64)}), r"the same fields as it, got dims \(32, 64\) and \(32, 48\)"),
        (("dit_nano", {}), "student and teacher must be U-Nets, got DiT and UNet"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNetDistillation(*arguments)
    with pytest.raises(ValueError, match=r"features must be one of self_attention.*got 'attention'"):
        UNetDistillation("unet_nano", features="attention")

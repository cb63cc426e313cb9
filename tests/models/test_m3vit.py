"""M³ViT: one task costs one task, routers are apart, the authors' weights load, two tasks are learnt together."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import zoo
from zoo.checkpoints.convert import m3vit
from zoo.kernels.flops import flop_counter
from zoo.train.data import DigitsDataModule

TASKS: dict[str, Any] = {"label_tasks": {"parity": 2}, "dense_tasks": {"clean": 1}}
nano = partial(zoo.create_model, "m3vit_nano")
GATES = {"multi-gate": None, "task-conditioned": 5}


def several(gate: str, **options: Any) -> Any:
    """A small model for a class, a parity and a map, in float64 and eval mode, batch norms away from their start."""
    torch.manual_seed(0)
    options = {"dim": 16, "depth": 4, "decoder_dim": 8, "task_dim": GATES[gate], "dtype": torch.float64} | options
    model: Any = nano(**options, **TASKS)
    for name, tensor in model.state_dict().items():
        if name.endswith("bias") or "running" in name:
            tensor.uniform_(0.2, 0.8)
    return model.eval()


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 1, 8, 8, dtype=torch.float64)


def flops(model: Any, *inputs: Any) -> int:
    with flop_counter(display=False) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("gate", GATES)
def test_one_task_gives_its_output_and_none_all_of_them(gate):
    model, x = several(gate), images()
    outputs = model(x)
    shapes = {"classification": (3, 10), "parity": (3, 2), "clean": (3, 1, 8, 8)}
    assert {name: tuple(output.shape) for name, output in outputs.items()} == shapes
    for name, output in outputs.items():
        assert torch.equal(model(x, name), output)
        features = model.forward_features(x, name)
        assert torch.equal(model.forward_head(features, task=name), output)
        last, maps = model.forward_intermediates(x, indices=2, task=name)
        assert torch.equal(last, features) and maps[-1].shape == (3, 16, 4, 4)
    assert model.forward_head(features, pre_logits=True, task="clean").shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"task must be one of .* got 'paritty', did you mean 'parity'"):
        model(x, "paritty")
    with pytest.raises(ValueError, match=r"task must be one of .* got None"):
        model.forward_features(x)


def test_another_tasks_gate_changes_nothing():
    model, x = several("multi-gate"), images()
    before = model(x)
    with torch.no_grad():
        for layer in model.experts:
            layer.router.gates[1].weight.normal_()
    after = model(x)
    assert torch.equal(after["classification"], before["classification"]) and torch.equal(
        after["clean"], before["clean"]
    )
    assert (after["parity"] - before["parity"]).abs().max() > 1e-4


@pytest.mark.parametrize("gate", GATES)
def test_tasks_choose_other_experts(gate):
    """The same images visit other experts for another task."""
    model, x = several(gate), images()
    for name, tensor in model.state_dict().items():
        if ".router." in name or name.startswith("task_embed."):
            tensor.normal_()  # tasks that differ by as much as the tokens do
    chosen = []
    for task in model.config.tasks:
        model(x, task)
        chosen.append(torch.stack([layer.activity["tokens_per_expert"] for layer in model.experts]))
    assert all(int(counts.sum()) == 2 * 2 * 3 * 17 for counts in chosen)
    assert not torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[1], chosen[2])


@pytest.mark.parametrize("gate", GATES)
def test_all_tasks_publish_their_sum_and_train_every_parameter(gate):
    model, x = several(gate).train(), images()
    separate = {"load_balance": 0.0, "read": 0}
    alone = copy.deepcopy(model)
    for task in model.config.tasks:
        alone(x, task)
        separate["load_balance"] += zoo.auxiliary_losses(alone)["load_balance"]
        separate["read"] += alone.experts[0].activity["experts_read"]
    outputs = model(x)
    side = zoo.auxiliary_losses(model)
    torch.testing.assert_close(side["load_balance"], separate["load_balance"])
    assert model.experts[0].activity["experts_read"] == separate["read"]
    (sum(output.square().mean() for output in outputs.values()) + side["load_balance"]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


@pytest.mark.parametrize("gate", GATES)
def test_saving_checkpointing_and_fusing_with_several_tasks(gate, tmp_path):
    model, x = several(gate), images()
    rebuilt: Any = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}", dtype=torch.float64).eval()
    assert rebuilt.config == model.config and torch.equal(rebuilt(x)["clean"], model(x)["clean"])
    fused = copy.deepcopy(model).fuse()
    torch.testing.assert_close(fused(x), model(x), atol=1e-10, rtol=1e-10)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.train().set_grad_checkpointing(enable)
        sum(output.square().mean() for output in model(x).values()).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
def test_exports_and_compiles_with_one_task_and_with_all(gate):
    model, x = several(gate, depth=2), images()
    expected = model(x)
    for options in ({"task": "clean"}, {}):
        program = torch.export.export(model, (x,), options).module()
        torch.testing.assert_close(program(x, **options), expected["clean"] if options else expected)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    counts = model.experts[0].activity["tokens_per_expert"]
    assert int(counts.sum()) == 3 * 2 * 3 * 17


def expert_flops(config: Any, tokens: int) -> int:
    """Of a layer with experts for so many tokens: router, two products and their biases, weighted sum."""
    d, h, e, k = config.dim, int(config.dim * config.moe_mlp_ratio), config.num_experts, config.top_k
    return tokens * 2 * (d * e + k * (2 * d * h + e * (h + d) + d))


def test_one_task_costs_the_dense_transformer_with_top_k_experts():
    model, dense = several("multi-gate"), zoo.create_model("vit_nano", dim=16, depth=4, dtype=torch.float64)
    x, c = images(), model.config
    tokens = 3 * 17
    expected = flops(dense, x) + 2 * (expert_flops(c, tokens) - tokens * 2 * 2 * 4 * c.dim**2)
    single = {task: flops(model, x, task) for task in c.tasks}
    assert single["classification"] == expected
    assert flops(model, x) == sum(single.values()) > 2.9 * single["parity"]


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 43_420_032), ({"top_k": 2, "moe_mlp_ratio": 2.0}, 71_768_448)],
    ids=["narrow", "wide"],
)
def test_counts_of_the_authors_small_model(options, parameters):
    """43.42M and 71.77M in the backbone for NYUD-v2; 39.15 GMACs of attention and MLPs for 480 x 640 pixels."""
    model: Any = zoo.create_model("m3vit_small", device="meta", **options)
    c, x = model.config, torch.empty(1, 3, 480, 640, device="meta")
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("decoders.")) == parameters
    with flop_counter(display=False) as counter, torch.no_grad():
        model.forward_features(x, "depth")
    overhead = 6 * (expert_flops(c, 1201) - 1201 * 2 * 8 * c.dim**2)
    assert (counter.get_total_flops() - overhead) / 2e9 == pytest.approx(39.15, abs=0.01)
    assert overhead < 0.02 * counter.get_total_flops()


def authors_weights(config: Any) -> dict[str, Tensor]:
    """Random weights in the authors' layout and names."""
    d, e, h, t = config.dim, config.num_experts, int(config.dim * config.moe_mlp_ratio), config.task_dim
    w, patch, tasks = config.decoder_dim, config.patch_size, len(config.tasks)
    pixels = config.image_shape[0] * config.image_shape[1]
    shapes: dict[str, tuple[int, ...]] = {}

    def add(prefix: str, *sizes: int, bias: int = 0) -> None:
        shapes.update({f"{prefix}.weight": sizes, f"{prefix}.bias": (*sizes[:bias], sizes[bias])})

    add("backbone.patch_embed.proj", d, 3, patch, patch)
    shapes |= {"backbone.cls_token": (1, 1, d), "backbone.pos_embed": (1, pixels // patch**2 + 1, d)}
    for i in range(config.depth):
        block = f"backbone.blocks.{i}"
        add(f"{block}.norm1", d)
        add(f"{block}.attn.qkv", 3 * d, d)
        add(f"{block}.attn.proj", d, d)
        add(f"{block}.norm2", d)
        if i % 2 == 0:
            add(f"{block}.mlp.fc1", 4 * d, d)
            add(f"{block}.mlp.fc2", d, 4 * d)
            continue
        add(f"{block}.mlp.experts.htoh4", e, h, d, bias=1)
        add(f"{block}.mlp.experts.h4toh", e, d, h, bias=1)
        gates = {"w_gate": d + t} if t else {f"{task}.w_gate": d for task in range(tasks)}
        shapes |= {f"{block}.mlp.gate.{name}": (inputs, e) for name, inputs in gates.items()}
    if t:
        add("backbone.gate_task_represent.fc1", t, tasks)
        add("backbone.gate_task_represent.fc2", t, t)
        add("backbone.gate_task_represent.norm", t)
    for task, channels in config.dense_tasks.items():
        add(f"decoders.{task}.norm", d)
        for i in range(2):
            norm = f"decoders.{task}.syncbn_fc_{i}"
            add(f"decoders.{task}.conv_{i}", w, w if i else d, 3, 3)
            add(norm, w)
            shapes |= {f"{norm}.running_mean": (w,), f"{norm}.running_var": (w,), f"{norm}.num_batches_tracked": ()}
        add(f"decoders.{task}.conv_4", channels, w, 1, 1)
    add("tam_model0.layers0.0", 3, 3)
    torch.manual_seed(1)
    weights = {name: 0.3 * torch.randn(shape) + 0.1 for name, shape in shapes.items()}
    kinds = {"tracked": lambda w: torch.tensor(3), "running_var": lambda w: w.abs() + 0.5}
    return {name: next((f(w) for end, f in kinds.items() if name.endswith(end)), w) for name, w in weights.items()}


def authors_forward(p: dict[str, Tensor], x: Tensor, task: int, name: str, config: Any) -> Tensor:
    """The authors' network for one image, token by token in its experts."""

    def linear(x: Tensor, key: str) -> Tensor:
        return x @ p[f"{key}.weight"].T + p[f"{key}.bias"]

    def norm(x: Tensor, key: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], p[f"{key}.weight"], p[f"{key}.bias"], 1e-6)

    def mlp(x: Tensor, first: str, second: str) -> Tensor:
        return linear(F.gelu(linear(x, first)), second)

    def attention(x: Tensor, key: str) -> Tensor:
        q, k, v = linear(x, f"{key}.qkv").view(len(x), 3, config.num_heads, -1).permute(1, 2, 0, 3)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return linear((weights @ v).transpose(0, 1).flatten(1), f"{key}.proj")

    def logits(x: Tensor, key: str) -> Tensor:
        if not config.task_dim:
            return x @ p[f"{key}.gate.{task}.w_gate"]
        represent = "backbone.gate_task_represent"
        condition = norm(mlp(torch.eye(2)[task], f"{represent}.fc1", f"{represent}.fc2"), f"{represent}.norm")
        return torch.cat([x, condition.repeat(len(x), 1)], dim=-1) @ p[f"{key}.gate.w_gate"]

    def experts(x: Tensor, key: str) -> Tensor:
        w1, b1, w2, b2 = (p[f"{key}.experts.{n}"] for n in ("htoh4.weight", "htoh4.bias", "h4toh.weight", "h4toh.bias"))
        y = torch.zeros_like(x)
        for m, (values, indices) in enumerate(zip(*logits(x, key).softmax(1).topk(config.top_k, dim=1), strict=True)):
            for value, e in zip(values, indices, strict=True):
                y[m] += value * (w2[e] @ F.gelu(w1[e] @ x[m] + b1[e]) + b2[e])
        return y

    b = "backbone"
    patches = F.conv2d(x, p[f"{b}.patch_embed.proj.weight"], p[f"{b}.patch_embed.proj.bias"], stride=4)[0].flatten(1).T
    x = torch.cat([p[f"{b}.cls_token"][0], patches]) + p[f"{b}.pos_embed"][0]
    for i in range(config.depth):
        x = x + attention(norm(x, f"{b}.blocks.{i}.norm1"), f"{b}.blocks.{i}.attn")
        y, key = norm(x, f"{b}.blocks.{i}.norm2"), f"{b}.blocks.{i}.mlp"
        x = x + (experts(y, key) if i % 2 else mlp(y, f"{key}.fc1", f"{key}.fc2"))
    d = f"decoders.{name}"
    y = norm(x[1:], f"{d}.norm").T.view(1, -1, 3, 4)
    double = partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=False)
    for i in range(2):
        y = F.conv2d(y, p[f"{d}.conv_{i}.weight"], p[f"{d}.conv_{i}.bias"], padding=1)
        statistics = (p[f"{d}.syncbn_fc_{i}.running_mean"], p[f"{d}.syncbn_fc_{i}.running_var"])
        y = F.batch_norm(y, *statistics, p[f"{d}.syncbn_fc_{i}.weight"], p[f"{d}.syncbn_fc_{i}.bias"]).relu()
        y = double(y) if i == 0 else y
    return double(F.conv2d(y, p[f"{d}.conv_4.weight"], p[f"{d}.conv_4.bias"]))


@pytest.mark.parametrize("task_dim", GATES.values(), ids=GATES)
def test_weights_of_the_authors_load_and_give_their_outputs(task_dim, tmp_path):
    options: dict[str, Any] = {
        "img_size": (12, 16), "patch_size": 4, "dim": 8, "depth": 4, "num_heads": 2, "num_experts": 5, "top_k": 2,
        "decoder_dim": 6, "task_dim": task_dim,
    }  # fmt: skip
    blank: Any = zoo.create_model("m3vit_small", device="meta", **options)
    weights = authors_weights(blank.config)
    save_file(weights, tmp_path / "authors.safetensors")
    model: Any = zoo.create_model("m3vit_small", checkpoint_path=tmp_path / "authors.safetensors", **options).eval()
    x = torch.randn(1, 3, 12, 16)
    with torch.no_grad():
        for task, name in enumerate(("semseg", "depth")):
            expected = authors_forward(weights, x, task, name, model.config)
            torch.testing.assert_close(model(x, name), expected, atol=1e-4, rtol=1e-4)


def test_one_router_of_the_authors_serves_every_task():
    model: Any = zoo.create_model("m3vit_small", device="meta", img_size=32, dim=12, depth=2)
    weights = authors_weights(model.config)
    gate = weights["backbone.blocks.1.mlp.gate.0.w_gate"]
    single = {key.replace("gate.0.", "gate."): tensor for key, tensor in weights.items() if ".gate.1." not in key}
    converted = m3vit.to_zoo(single)
    for task in range(2):
        assert torch.equal(converted[f"blocks.1.mlp.router.gates.{task}.weight"], gate.T)


def test_two_tasks_are_learnt_together():
    """Digits and their parity, each through its own router; chance is 10 % and 50 %."""
    torch.manual_seed(0)
    data = DigitsDataModule(batch_size=64, eval_batch_size=360)
    model: Any = nano(dim=32, depth=2, label_tasks={"parity": 2})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(8):
        for x, digit in data.train_dataloader():
            outputs = model(x)
            loss = F.cross_entropy(outputs["classification"], digit) + F.cross_entropy(outputs["parity"], digit % 2)
            optimizer.zero_grad()
            (loss + zoo.auxiliary_losses(model)["load_balance"]).backward()
            optimizer.step()
    x, digit = next(iter(data.test_dataloader()))
    with torch.no_grad():
        outputs = model.eval()(x)
    digits = (outputs["classification"].argmax(1) == digit).float().mean()
    parity = (outputs["parity"].argmax(1) == digit % 2).float().mean()
    assert digits > 0.5 and parity > 0.7, (digits, parity)


def test_tasks_that_do_not_fit_are_errors():
    for options, message in (
        ({"classification": False}, "num_classes are those of the task 'classification': got 10 without it"),
        ({"classification": False, "num_classes": 0}, r"distinct names that are identifiers, got \[\]"),
        ({"label_tasks": {"parity": 2}, "dense_tasks": {"parity": 1}}, "distinct names"),
        ({"dense_tasks": {"depth": 0}}, "positive number of outputs, got 0 for 'depth'"),
        ({"expert_every": 5}, "expert_every must be at most depth"),
        ({"patch_size": 3, "img_size": 9, "dense_tasks": {"depth": 1}}, "must be a power of 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            nano(**options)
    model: Any = zoo.create_model("m3vit_small", device="meta")
    with pytest.raises(ValueError, match=r"no task 'classification' to reset, only \['semseg', 'depth'\]"):
        model.reset_classifier(5)


def test_initial_values_are_those_of_the_authors():
    model: Any = zoo.create_model("m3vit_small", depth=2, img_size=(16, 16))
    attention, experts = model.blocks[1].attn, model.blocks[1].mlp
    assert attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02) and not attention.qkv.bias.any()
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for weight in (experts.w1, experts.w2):  # 384 to 384
        assert weight.std().item() == pytest.approx(1 / 384 / 3**0.5, rel=0.02)
    assert not experts.b1.any() and not experts.b2.any()
    gate = experts.router.gates[0].weight  # uniform within a quarter, of 16 experts
    assert gate.abs().max() < 0.25 and gate.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)

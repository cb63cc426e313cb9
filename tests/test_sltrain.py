"""Sparse plus low-rank layers: the explicit matrix, what the backward pass keeps, sizes, folders, and merging."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.changes import changes_of
from zoo.layers.lowrank import SparseLowRank
from zoo.layers.lowrank.sparse import dense
from zoo.sltrain import SLTrain

KINDS = ("mamba2_nano", "moe_nano", "rwkv7_nano", "vit_nano")
TABLES = "memoryformer_nano"  # has no linear layer but the head
FURTHER = [name for name in zoo.list_models("*_nano", task="language") if name not in (*KINDS, TABLES)]


def trained(*sizes: int, **options: Any) -> SparseLowRank:
    """A layer none of whose parts is zero, in float64."""
    layer = SparseLowRank(*sizes, **options).double()
    nn.init.normal_(layer.B.weight, std=0.3)
    return layer


def explicit(x: Tensor, layer: SparseLowRank) -> Tensor:
    """With W made entry by entry."""
    rows, columns = layer.out_features, layer.in_features
    low = layer.scale * layer.B.weight @ layer.A.weight
    sparse = {int(place): value for place, value in zip(layer.support, layer.values, strict=True)}
    zero = low.new_zeros(())
    entries = [low[i, j] + sparse.get(i * columns + j, zero) for i in range(rows) for j in range(columns)]
    return F.linear(x, torch.stack(entries).view(rows, columns), layer.B.bias)


def tokens(model: Any) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Any:
    """A nano whose low-rank parts are not zero."""
    torch.manual_seed(0)
    model = zoo.sltrain(zoo.create_model("transformer_nano", depth=2, dim=64, mlp_dim=128), rank=8, density=0.05)
    for layer in layers(model):
        nn.init.normal_(layer.B.weight, std=0.2)
    return model


def layers(model: nn.Module) -> list[SparseLowRank]:
    return [module for module in model.modules() if isinstance(module, SparseLowRank)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("density", "shape"), [(0.0, (2, 3)), (0.2, (2, 3)), (1.0, (3,)), (0.5, ()), (0.5, (0,))])
def test_outputs_and_gradients_are_those_of_the_explicit_matrix(density, shape, bias):
    layer, x = trained(7, 5, rank=2, density=density, bias=bias), torch.randn(*shape, 7).double().requires_grad_()
    assert len(layer.values) == int(35 * density) and (layer.support.diff() > 0).all()
    wanted, dy = [x, *layer.parameters()], torch.randn(*shape, 5).double()
    y, expected = layer(x), explicit(x, layer)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y, wanted, dy, allow_unused=density == 0)
    for a, b in zip(gradients, torch.autograd.grad(expected, wanted, dy, allow_unused=True), strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)
    parts = (layer.A.weight, layer.B.weight, layer.values)
    torch.autograd.gradgradcheck(lambda x, A, B, v: layer._product(x, A, B, None), (x, *parts))


def test_it_starts_as_its_sparse_part():
    layer, x = SparseLowRank(32, 16, rank=4, density=0.1), torch.randn(3, 32)
    torch.testing.assert_close(
        layer(x), F.linear(x, dense(*zeros(layer), layer.values, layer.support, 1.0), layer.B.bias)
    )
    assert (layer.values.abs() <= 32**-0.5).all() and (layer.A.weight.abs() <= 32**-0.5).all()
    assert layer.values.abs().max() > 0.8 * 32**-0.5


def zeros(layer: SparseLowRank) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, layer.in_features), torch.zeros(layer.out_features, 0)


def test_no_matrix_is_kept_for_the_backward_pass():
    layer, kept = SparseLowRank(64, 96, rank=4), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(3, 64, requires_grad=True)).sum().backward()
    assert kept and max(kept) < 64 * 96 and 0 < len(layer.values) < 200


def test_frozen_parts_get_no_gradient():
    layer = SparseLowRank(6, 4, rank=2)
    layer.requires_grad_(False)
    x = torch.randn(2, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2, 4) @ layer.merged().weight)


def test_under_autocast_products_are_bfloat16_and_gradients_of_the_parameters_dtype():
    layer = trained(32, 16, rank=4).float()
    x = torch.randn(5, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    exact = F.linear(x.detach(), layer.merged().weight, layer.B.bias)
    assert (y - exact).norm() < 0.01 * exact.norm()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize(
    ("full", "low", "both", "rank", "density", "sizes"),
    [
        (58.1, 42.8, 43.5, 128, 0.03, (512, 8, 8, 1376)),
        (134.1, 94.0, 96.5, 256, 0.03, (768, 12, 12, 2048)),
        (368.0, 185.2, 194.3, 256, 0.03, (1024, 24, 16, 2736)),
        (1339.1, 609.3, 645.5, 512, 0.03, (2048, 24, 32, 5461)),
        (6738, 2821, 3145, 1024, 0.05, (4096, 32, 32, 11008)),
    ],
)
def test_parameters_of_the_papers_sizes(full, low, both, rank, density, sizes):
    """In millions, of LLaMA's shapes with 32,000 words."""
    dim, depth, num_heads, mlp_dim = sizes
    options = {"dim": dim, "depth": depth, "num_heads": num_heads, "num_kv_heads": None, "mlp_dim": mlp_dim}
    build = partial(zoo.create_model, "transformer_nano", vocab_size=32000, tie_embeddings=False, device="meta")
    for changes, expected in (
        ([], full),
        ([SLTrain(rank=rank, density=0.0)], low),
        ([SLTrain(rank=rank, density=density)], both),
    ):
        count = sum(p.numel() for p in build(**options, changes=changes).parameters()) / 1e6
        assert round(count, 1 if full < 2000 else 0) == expected


@pytest.mark.parametrize("name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)])
def test_models_of_all_kinds_train(name):
    """Routers, embeddings, norms and the head stay as they are."""
    model: Any = zoo.create_model(name, changes=[{"kind": "sltrain", "rank": 4}])
    assert layers(model) and not isinstance(getattr(model, "head", None), SparseLowRank)
    if name == "vit_nano":
        loss = model(torch.randn(2, model.config.in_chans, *model.config.image_shape)).square().mean()
    else:
        loss = model(tokens(model), labels=tokens(model))
    loss.backward()
    reached = [layer for layer in layers(model) if layer.B.weight.grad is not None]
    assert len(reached) == len(layers(model)) or name in (
        "deepseek_mtp_nano",
        "hamburger_nano",
    )  # with other losses too
    assert all(layer.B.weight.grad.any() and layer.values.grad.any() for layer in reached)


def test_a_saved_model_has_the_same_support_and_outputs(model, tmp_path):
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert changes_of(again) == (SLTrain(rank=8, density=0.05),)
    for a, b in zip(layers(again), layers(model), strict=True):
        assert torch.equal(a.support, b.support) and a.support.dtype == torch.int32
    assert torch.equal(again(tokens(model)), model.eval()(tokens(model)))


def test_merged_it_is_a_plain_model_of_equal_outputs(model, tmp_path):
    expected = model.eval()(tokens(model))
    with torch.no_grad():
        assert torch.equal(zoo.merge_sltrain(model)(tokens(model)), expected)
    assert not layers(model) and not changes_of(model)
    zoo.save_model(model, tmp_path)
    assert torch.equal(zoo.create_model(f"local-dir:{tmp_path}").eval()(tokens(model)), expected)
    with pytest.raises(ValueError, match="no layers of SLTrain"):
        zoo.merge_sltrain(model)


def test_whole_is_prefix_then_steps(model):
    model.eval()
    x, state = tokens(model), model.init_state(2, 20)
    with torch.no_grad():
        whole, first = model(x), model(x[:, :17], state)
        steps = [model(x[:, t : t + 1], state) for t in range(17, 20)]
    torch.testing.assert_close(torch.cat([first, *steps], 1), whole, atol=1e-5, rtol=1e-4)


def test_one_graph_compiles_and_exports(model):
    x = tokens(model)
    torch._dynamo.reset()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(x, labels=x)
    torch.testing.assert_close(loss, model(x, labels=x))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for a, b in zip(gradients, torch.autograd.grad(model(x, labels=x), list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    model.eval()
    program = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(program(x), model(x))


def test_adapters_and_records_in_the_factors_are_in_effect(model):
    """Where A or B is not plain both are called, to the same sum."""
    layer = layers(model)[0]
    x = torch.randn(3, layer.in_features)
    expected = layer(x)
    inner = layer.A
    layer.A = nn.Sequential(inner)  # type: ignore[assignment]
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(ValueError, match="merge the adapters in A and B first"):
        layer.merged()
    layer.A = inner
    exact = model.eval()(tokens(model))
    zoo.quantize(model, bits=8)
    assert not any(type(part) is nn.Linear for layer in layers(model) for part in (layer.A, layer.B))
    assert 0 < (model(tokens(model)) - exact).norm() < 0.03 * exact.norm()


def test_peft_reaches_the_factors(model):
    peft = pytest.importorskip("peft")
    expected = model.eval()(tokens(model))
    wrapped = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["A", "B"]), model)
    torch.testing.assert_close(wrapped(tokens(model)), expected)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert (wrapped(tokens(model)) - expected).norm() > 0.1 * expected.norm()


def test_a_model_of_tables_has_none_to_replace():
    with pytest.raises(ValueError, match="the model has no linear layers to replace"):
        zoo.sltrain(zoo.create_model(TABLES, device="meta"), rank=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 4, "density": 1.5}, r"density must lie in \[0, 1\], got 1.5"),
        ({"rank": 4, "alpha": 0.0}, "alpha must be above 0"),
        ({"rank": 4, "skip": ("heads",)}, "skip names no layer by 'heads'; names are as 'blocks.0"),
        ({"rank": 100}, "rank 100 makes none of the .* layers smaller"),
    ],
)
def test_wrong_options_say_the_rule_and_change_nothing(options, message):
    model = zoo.create_model("transformer_nano")
    with pytest.raises(ValueError, match=message):
        zoo.sltrain(model, **options)
    assert not layers(model) and not changes_of(model)

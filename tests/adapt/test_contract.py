"""What every adapter keeps: outputs at first, frozen weights, files, merging; and what each method computes."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import zoo
from zoo.adapt import ADAPTERS, Adapter, PaCA, adapters_of, load_adapter, own_names, paca
from zoo.layers.adapt import PartialLinear, before, mark_of, placed

CASES = {
    "paca": ("transformer_nano", {"rank": 3}, True),
    "lora": ("mamba2_nano", {"rank": 3}, False),
    "dora": ("vit_nano", {"rank": 3, "targets": ["*.mlp.*"]}, False),
    "mamba_lora": ("mamba_nano", {"rank": 3, "ssm": True}, False),
    "sink_lora": ("transformer_nano", {"rank": 3, "groups": 3, "sinks": 1}, False),
    "mobiletl": ("mcunet_nano", {"blocks": 2, "also": ["head.*"]}, True),
    "rows": ("dit_nano", {"rows": (10, 3)}, True),
    "ladder": ("transformer_nano", {"reduction": 4, "every": 2}, True),
    "pst": ("vit_nano", {"rank": 2, "score_rank": 3}, True),
    "scedit": ("unet_nano", {"ratio": 0.5}, True),
}  # kind -> model, options, whether merging it is exact
CONV_FREE = [("paca", "mamba2_nano"), ("paca", "vit_nano"), ("lora", "transformer_nano")]


def built(name: str, **options: Any) -> Any:
    return zoo.create_model(name, pretrained=True, dtype=torch.float64, **options).eval()


def inputs(model: Any, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(1)
    if hasattr(model.config, "vocab_size"):
        return torch.randint(0, model.config.vocab_size, (batch, 12))
    return torch.randn(batch, model.config.in_chans, *model.config.image_shape, dtype=dtype)


def trained(model: Any, steps: int = 3, dtype: torch.dtype = torch.float64) -> torch.optim.Optimizer:
    """A few steps of what learns, with weight decay."""
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-2, weight_decay=0.1)
    x = inputs(model, 4, dtype)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x).square().mean() + sum(zoo.auxiliary_losses(model).values())).backward()
        optimizer.step()
    model.eval()
    return optimizer


def plain(model: nn.Module) -> dict[str, Tensor]:
    """What is not an adapter's, under its names of before."""
    own = set(own_names(model))
    return {before(model, name): tensor for name, tensor in model.state_dict().items() if name not in own}


def test_every_method_is_tested():
    assert set(CASES) | {"peqa", "sketchtune", "l4q", "perp"} == set(ADAPTERS)  # in test_records.py, test_sparse.py


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, case[0]) for kind, case in CASES.items()), *CONV_FREE], ids=lambda value: value
)
def test_the_contract(kind, name, tmp_path):
    _, options, exact = CASES[kind]
    model, x = built(name), None
    x, expected = inputs(model), model(inputs(model))
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    zoo.adapt(model, kind, **options)
    assert torch.equal(model(x), expected), "untrained, it changes no output"
    own = own_names(model)
    first = {key: model.state_dict()[key].clone() for key in own}
    optimizer = trained(model)

    for key, tensor in plain(model).items():
        assert torch.equal(tensor, start[key]), f"{key} is frozen"
    learns = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns <= set(own) and all(not torch.equal(first[key], model.state_dict()[key]) for key in learns)
    held = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    assert sum(t.numel() for t in held) == 2 * sum(model.get_parameter(key).numel() for key in learns)

    found = model(x)
    assert not torch.allclose(found, expected)
    zoo.save_adapter(model, tmp_path / "adapter")
    assert load_file(tmp_path / "adapter" / "model.safetensors").keys() == set(own)
    again: Any = built(name, adapter=tmp_path / "adapter")
    assert torch.equal(again(x), found) and adapters_of(again) == adapters_of(model)
    assert {key for key, parameter in again.named_parameters() if parameter.requires_grad} == learns
    zoo.save_model(model, tmp_path / "whole")
    assert torch.equal(zoo.create_model(f"local-dir:{tmp_path / 'whole'}", dtype="auto").eval()(x), found)

    if not ADAPTERS[kind].mergeable:
        with pytest.raises(ValueError, match="cannot be merged"):
            zoo.merge_adapter(model)
        return
    merged = zoo.merge_adapter(copy.deepcopy(model))
    torch.testing.assert_close(merged(x), found, rtol=0 if exact else 1e-9, atol=0 if exact else 1e-9)
    assert merged.state_dict().keys() == start.keys() and not adapters_of(merged) and not placed(merged)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert torch.equal(model(x), found)


def test_all_columns_are_full_tuning():
    name = "blocks.0.mixer.q_proj"
    model, full = (built("transformer_nano") for _ in range(2))
    zoo.adapt(model, "paca", rank=128, targets=[name])
    x = inputs(model)
    model(x).square().mean().backward()
    full(x).square().mean().backward()
    torch.testing.assert_close(model.get_submodule(name).columns.grad, full.get_submodule(name).weight.grad)


def test_columns_are_drawn_by_a_seed_and_further_parameters_learn():
    def indices(**options: Any) -> list[list[int]]:
        model = zoo.adapt(built("vit_nano"), PaCA(rank=4, **options))
        return [module.index.tolist() for module in placed(model).values()]

    assert indices() == indices() != indices(seed=1)
    assert len({tuple(index) for index in indices()}) > 1, "each layer draws its own"
    model = zoo.adapt(built("vit_nano", num_classes=3), "paca", also=["head.*", "norm.weight"])
    learns = {key for key, parameter in model.named_parameters() if parameter.requires_grad and "columns" not in key}
    assert learns == {"head.weight", "head.bias", "norm.weight"} <= set(own_names(model))


def test_adapters_on_different_layers(tmp_path):
    model = built("transformer_nano")
    zoo.adapt(model, "lora", targets=["*.q_proj", "*.v_proj"], rank=2)
    zoo.adapt(model, "paca", targets=["*.mlp.*"], rank=2)
    trained(model)
    assert {key.split(".")[-1] for key in own_names(model)} >= {"columns", "index"}
    learns = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_A" in key for key in learns) and any("columns" in key for key in learns)
    expected = model(inputs(model))
    zoo.save_adapter(model, tmp_path)
    assert torch.equal(built("transformer_nano", adapter=tmp_path)(inputs(model)), expected)
    torch.testing.assert_close(zoo.merge_adapter(model)(inputs(model)), expected)


def test_layers_that_share_a_module_share_its_adapter():
    model = zoo.adapt(built("zamba2_nano"), "paca", rank=2)
    assert not [key for key, module in model.named_modules(remove_duplicate=False) if type(module) is nn.Linear][1:]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("pac", {}, "did you mean 'paca'"),
        ("exits", {}, "an adapter is described as"),
        ("paca", {"ranks": 3}, "has no option 'ranks', did you mean 'rank'"),
        ("paca", {"rank": 0}, "rank must be at least 1, got 0"),
        ("paca", {"targets": ["blocks.9.*"]}, "'blocks.9.*' names no layer that paca can be put on"),
        ("paca", {"targets": ["*.norm"]}, "names no layer that paca can be put on"),
        ("paca", {"targets": ["head"]}, "head shares its weight with another layer"),
        ("paca", {"also": ["embeding.*"]}, "also: 'embeding.*' is no parameter's name, did you mean"),
        ("lora", {"rank": 0}, "rank must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_changes_nothing(kind, options, message):
    model = built("transformer_nano")
    with unchanged(model), pytest.raises(ValueError, match=message):
        zoo.adapt(model, kind, **options)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not adapters_of(model)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """A model's modules and tensors are the same objects afterwards, of the same bits, and learn as they did."""

    def seen() -> list[Any]:
        held = [(key, id(tensor), tensor.requires_grad) for key, tensor in model.state_dict(keep_vars=True).items()]
        modules = [(key, id(module), module.training, mark_of(module)) for key, module in model.named_modules()]
        return [held, modules, adapters_of(model)]

    before, bits = seen(), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    yield
    assert seen() == before
    assert all(torch.equal(tensor, bits[key]) for key, tensor in model.state_dict().items())


def test_order_and_stacking():
    model = zoo.adapt(built("transformer_nano"), "paca", targets=["*.q_proj"])
    for kind, options, message in [
        ("lora", {"targets": ["*.q_proj"]}, "q_proj is adapted by paca already: a layer has one adapter"),
        ("lora", {}, "is adapted by paca: say by targets"),
        ("ladder", {}, "ladder and paca exclude each other"),
        ("sink_lora", {"targets": ["*.q_proj"]}, "q_proj is adapted by paca already"),
        ("mamba_lora", {"targets": ["*.v_proj"]}, "has no Mamba or Mamba-2 mixer"),
    ]:
        with unchanged(model), pytest.raises(ValueError, match=message):
            zoo.adapt(model, kind, **options)
    for call in (zoo.quantize, lambda m: zoo.factorize(m, 4), lambda m: zoo.add_exits(m, [0])):
        with pytest.raises(ValueError, match=r"comes before adapters, the model has paca: zoo\.merge_adapter first"):
            call(model)
    with pytest.raises(ValueError, match="has no adapter to merge"):
        zoo.merge_adapter(built("transformer_nano"))
    with pytest.raises(ValueError, match="a method's name"):
        zoo.adapt(model, PaCA(), rank=2)


def test_adapters_beside_factors_and_records(tmp_path):
    """They come last, in whatever place the rest has."""
    model: Any = zoo.create_model("transformer_nano", pretrained=True).eval()
    zoo.factorize(model, 8, skip=["*.q_proj", "*.k_proj"])
    zoo.quantize(model, skip=("*.q_proj.weight",), embeddings=False)
    zoo.adapt(model, "paca", rank=2)
    trained(model)
    expected = model(inputs(model))
    zoo.save_model(model, tmp_path)
    assert torch.equal(zoo.create_model(f"local-dir:{tmp_path}").eval()(inputs(model)), expected)


def test_a_file_of_something_else(tmp_path):
    model = zoo.adapt(built("transformer_nano"), "paca", rank=2)
    zoo.save_adapter(model, tmp_path / "adapter")
    for name, options, message in [
        ("mamba2_nano", {}, "holds an adapter of transformer_nano, the model is mamba2_nano"),
        ("transformer_nano", {"depth": 2}, "with depth=3: create the model so"),
        ("transformer_nano", {"pretrained": False}, r"of other weights: .* differs"),
    ]:
        made: Any = zoo.create_model(name, **{"pretrained": not options, **options})
        with unchanged(made), pytest.raises(ValueError, match=message):
            load_adapter(made, tmp_path / "adapter")
    with pytest.raises(ValueError, match="an adapter of transformer_nano: create that model with adapter=FOLDER"):
        zoo.create_model(f"local-dir:{tmp_path / 'adapter'}")
    zoo.save_model(built("transformer_nano"), tmp_path / "model")
    with pytest.raises(ValueError, match="holds no adapter"):
        built("transformer_nano", adapter=tmp_path / "model")
    with pytest.raises(ValueError, match="takes a model of create_model with adapters"):
        zoo.save_adapter(built("transformer_nano"), tmp_path / "none")
    low: Any = zoo.create_model("transformer_nano", True, dtype=torch.bfloat16, adapter=tmp_path / "adapter")
    assert low.blocks[0].mixer.q_proj.columns.dtype == torch.bfloat16
    empty: Any = zoo.create_model("transformer_nano", device="meta", adapter=tmp_path / "adapter")
    assert empty.blocks[0].mixer.q_proj.columns.is_meta


def test_a_damaged_file_leaves_the_model_as_it_was(tmp_path):
    folder = zoo.save_adapter(zoo.adapt(built("transformer_nano"), "paca", rank=2), tmp_path / "adapter")
    config = json.loads((folder / "config.json").read_text())
    config["changes"][0]["rank"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    model = built("transformer_nano")
    with unchanged(model), pytest.raises(ValueError, match="mismatched"):
        load_adapter(model, folder)


def test_the_second_of_two_adapters_that_fails_takes_the_first_with_it(tmp_path):
    """What only numbers tell, a row of zeros under DoRA, is seen when the first one is in place."""
    model = zoo.adapt(built("transformer_nano"), "paca", rank=2, targets=["*.q_proj"])
    folder = zoo.save_adapter(zoo.adapt(model, "dora", rank=2, targets=["*.v_proj"]), tmp_path / "adapter")
    other: Any = built("transformer_nano")
    with torch.no_grad():
        other.blocks[1].mixer.v_proj.weight[5] = 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"base": {}}))
    with unchanged(other), pytest.raises(ValueError, match="has a row of zeros"):
        load_adapter(other, folder)


def test_methods_are_dataclasses_of_documented_fields():
    for kind, method in ADAPTERS.items():
        assert method.kind == kind and issubclass(method, Adapter)
        assert zoo.config.describe_fields(method).keys() == {field.name for field in dataclasses.fields(method)}


def test_a_layer_that_fails_leaves_what_learnt_before_it(monkeypatch):
    made = iter([PartialLinear])
    monkeypatch.setattr(paca, "PartialLinear", lambda *args: next(made)(*args))
    model = built("transformer_nano")
    model.norm.requires_grad_(False)
    before = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    with pytest.raises(StopIteration):
        zoo.adapt(model, "paca", rank=2)
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == before


@pytest.mark.parametrize("kind", ["lora", "dora", "sink_lora"])
def test_a_merge_that_fails_leaves_the_adapted_model(kind, monkeypatch):
    model = zoo.adapt(built("transformer_nano"), kind, rank=2)
    trained(model)
    x = inputs(model)
    expected, last = model(x), list(placed(model).values())[-1]

    def broken() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(last, "merge", broken)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        zoo.merge_adapter(model)
    assert torch.equal(model(x), expected)
    monkeypatch.undo()
    torch.testing.assert_close(zoo.merge_adapter(model)(x), expected)

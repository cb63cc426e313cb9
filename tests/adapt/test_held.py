"""LoRA beside compressed layers: outputs at first, gradients, files, decoding, merging that is asked for, and peft."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from adapt.test_contract import plain, trained

import zoo
from zoo.adapt import adapters_of, own_names
from zoo.integrations.peft import HeldLoRA, over_records
from zoo.layers.adapt import placed
from zoo.layers.quant import LAYOUTS, FrozenError, records
from zoo.layers.step import programmed

RECORDS: dict[str, dict[str, Any]] = {
    **{layout: {"layout": layout} for layout in LAYOUTS if layout not in ("int", "dual_grained")},
    "int": {"bits": 3},
    "inputs": {"bits": 8, "activation_bits": 8},
    "some": {"bits": 4, "skip": ("*.q_proj.weight",)},
}
TOKENS = torch.arange(20)[None] * 7 % 256


def compressed(case: str = "int", name: str = "transformer_nano", dtype: Any = torch.float64, **options: Any) -> Any:
    model: Any = zoo.create_model(name, pretrained=True, dtype=dtype, **options).eval()
    return zoo.sparsify(model) if case == "sparse" else zoo.quantize(model, **RECORDS[case])


def moved(model: Any, size: float = 0.05) -> Any:
    """With products that are not 0."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("case", [*RECORDS, "sparse"])
def test_the_contract(case, tmp_path):
    """No output changes at first, nothing but low ranks ever does, and files hold them alone or with their model."""
    model, x = compressed(case), TOKENS
    base = f"local-dir:{zoo.save_model(model, tmp_path / 'base')}"
    with torch.no_grad():
        expected = model(x)
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    layers = [name for name, module in model.named_modules() if hasattr(module, "in_features") and name != "head"]
    zoo.adapt(model, "lora", rank=3)
    with torch.no_grad():  # with gradients rounded inputs go another way
        assert torch.equal(model(x), expected) and list(placed(model)) == layers
    own = own_names(model)
    first = {key: model.state_dict()[key].clone() for key in own}
    trained(model)
    assert all(torch.equal(tensor, start[key]) for key, tensor in plain(model).items())
    learns = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == set(own) and all(not torch.equal(first[key], model.state_dict()[key]) for key in learns)
    found = model(x)
    assert not torch.allclose(found, expected)
    zoo.save_adapter(model, tmp_path / "adapter")
    again: Any = zoo.create_model(base, dtype=torch.float64, adapter=tmp_path / "adapter").eval()
    assert torch.equal(again(x), found) and adapters_of(again) == adapters_of(model)
    zoo.save_model(model, tmp_path / "whole")
    whole: Any = zoo.create_model(f"local-dir:{tmp_path / 'whole'}", dtype=torch.float64).eval()
    assert torch.equal(whole(x), found) and records(whole).keys() == records(model).keys()


def test_gradients_are_those_of_the_numbers_that_codes_stand_for():
    """And they go through the codes to what lies before."""
    model: Any = moved(zoo.adapt(compressed(), "lora", rank=2))
    numbers: Any = zoo.create_model("transformer_nano", dtype=torch.float64)
    state = {
        name: model.get_submodule(name).dequantise() if name in records(model) else None for name in records(model)
    }
    rest = {name: tensor for name, tensor in plain(model).items() if name in numbers.state_dict()}
    numbers.load_state_dict({**rest, **{name.replace(".base_layer", ""): w for name, w in state.items()}})
    zoo.adapt(numbers, "lora", rank=2)
    own = {name: tensor for name, tensor in model.state_dict().items() if name in set(own_names(model))}
    numbers.load_state_dict(own, strict=False)
    for one in (model, numbers):
        one.train()(TOKENS, labels=TOKENS).backward()
    for name in own:
        found, exact = (one.get_parameter(name).grad for one in (model, numbers))
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for record in records(model).values() for p in record.parameters())


def test_a_small_task_is_learnt_and_nothing_of_a_matrix_is_kept():
    torch.manual_seed(0)
    model: Any = zoo.adapt(compressed(dtype=torch.float32), "lora", rank=4).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses, kept = [], []
    least = min(layer.base_layer.weight.shape.numel() for layer in placed(model).values())
    for _ in range(12):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss = model(TOKENS, labels=TOKENS)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.6 * losses[0]
    assert max(t.numel() for t in kept if t.is_floating_point()) < least


def test_what_is_frozen_stays_an_error():
    model = zoo.adapt(compressed(), "lora").train()
    next(iter(records(model).values())).scale.requires_grad_(True)
    with pytest.raises(FrozenError, match=r"must not require a gradient.*'lora'\) of any record"):
        model(TOKENS, labels=TOKENS).backward()


@pytest.mark.parametrize(("case", "program"), [("int", True), ("e4m3", True), ("inputs", True), ("binary", False)])
def test_a_step_is_what_the_whole_sequence_is(case, program):
    """Also by the program of a step, where the records have one; a product that is damped there is damped."""
    model: Any = moved(zoo.adapt(compressed(case, dtype=torch.float32), "lora", rank=4))
    with torch.no_grad(), programmed(model):
        for factor in (1.0, 0.25):
            with adapters_of(model)[0].damped(layer := model.blocks[1].mixer.v_proj, factor):
                whole, state = model(TOKENS), model.init_state(1)
                model(TOKENS[:, :5], state)
                found = [model(TOKENS[:, t : t + 1], state) for t in range(5, 20)]
                assert isinstance(layer, HeldLoRA) and bool(model.stepper.made.get(1)) is program
                torch.testing.assert_close(torch.cat(found, 1), whole[:, 5:], rtol=1e-4, atol=1e-4)
    merged = zoo.merge_adapter(copy.deepcopy(model), "float") if case == "int" else None
    if merged is not None:
        text = zoo.generate(model, TOKENS, 12, temperature=0)
        assert torch.equal(text, zoo.generate(merged, TOKENS, 12, temperature=0))


@pytest.mark.parametrize("into", ["float", "nearest"])
@pytest.mark.parametrize("case", ["int", "e4m3"])
def test_merging_is_asked_for(case, into, tmp_path):
    model: Any = moved(zoo.adapt(compressed(case), "lora", rank=2), 0.1)
    found, there = model(TOKENS), set(placed(model))
    with pytest.raises(ValueError, match=r"lora lies beside .*into='float'.*into='nearest'.*save_model"):
        zoo.merge_adapter(model)
    assert torch.equal(model(TOKENS), found) and set(placed(model)) == there
    merged: Any = zoo.merge_adapter(copy.deepcopy(model), into)
    assert not placed(merged) and not adapters_of(merged)
    layer: Any = merged.blocks[0].mixer.q_proj
    adapted: Any = model.blocks[0].mixer.q_proj
    exact = adapted.base_layer.weight.dequantise() + adapted.get_delta_weight("default")
    if into == "float":
        assert torch.equal(layer.weight, exact) and len(records(merged)) == len(records(model)) - len(there)
        torch.testing.assert_close(merged(TOKENS), found, rtol=1e-6, atol=1e-6)
    else:
        assert records(merged).keys() == records(compressed(case)).keys()
        error, change = (
            (layer.weight.dequantise() - w).abs().mean() for w in (exact, adapted.base_layer.weight.dequantise())
        )
        assert 0 < error < change
    zoo.save_model(merged, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    assert torch.equal(again(TOKENS), merged(TOKENS))


@pytest.mark.parametrize(
    ("case", "into", "message"),
    [
        ("inputs", "float", "a layer that changes its inputs"),
        ("sparse", "nearest", "has no zeros: only into='float' makes a layer of it"),
        ("int", "floats", "into must be one of float, nearest or None, got 'floats'"),
    ],
)
def test_what_cannot_be_merged_so_stays(case, into, message):
    model = moved(zoo.adapt(compressed(case), "lora", rank=2))
    found = model(TOKENS)
    with pytest.raises(ValueError, match=message):
        zoo.merge_adapter(model, into)
    assert torch.equal(model(TOKENS), found) and placed(model)


def test_heads_and_what_is_built_on_low_ranks():
    """A head that is the embedding is not parted from it, another may be adapted; Mamba's and SinkLoRA's choices."""
    with pytest.raises(ValueError, match="head shares its weight with another layer, which lora would part"):
        zoo.adapt(compressed(), "lora", targets=["head"])
    free: Any = zoo.quantize(zoo.create_model("transformer_nano", tie_embeddings=False).eval())
    assert list(placed(zoo.adapt(free, "lora", targets=["head"]))) == ["head"]
    mamba = zoo.adapt(compressed(name="mamba_nano"), "mamba_lora", rank=2, ssm=True)
    assert {name.split(".")[-1] for name in placed(mamba)} == {"in_proj", "x_proj"}
    sink = zoo.adapt(compressed(), "sink_lora", rank=2, groups=2)
    assert sum(isinstance(module, HeldLoRA) for module in placed(sink).values()) == 12
    with pytest.raises(ValueError, match="sink_lora lies beside compressed layers"):
        zoo.merge_adapter(sink)
    zoo.merge_adapter(sink, "float")
    for kind in ("dora", "paca"):
        with pytest.raises(ValueError, match=rf"{kind}: .* has no layer .* are compressed.*'lora'\) of any record"):
            zoo.adapt(compressed(), kind)


def test_what_was_learnt_over_codes_goes_on_the_numbers_and_back(tmp_path):
    """The weights that were compressed are the same model."""
    model: Any = moved(zoo.adapt(compressed(), "lora", rank=2))
    base = f"local-dir:{zoo.save_model(compressed(), tmp_path / 'base')}"
    folder = zoo.save_adapter(model, tmp_path / "adapter")
    assert "zoo.quantize" in (folder / "README.md").read_text()
    numbers: Any = zoo.create_model("transformer_nano", True, dtype=torch.float64, adapter=folder).eval()
    assert own_names(numbers) == own_names(model)
    assert all(torch.equal(model.state_dict()[name], numbers.state_dict()[name]) for name in own_names(model))
    low: Any = zoo.create_model(base, dtype=torch.bfloat16, adapter=folder)
    assert low.blocks[0].mixer.q_proj.lora_A["default"].weight.dtype == torch.bfloat16
    empty: Any = zoo.create_model("transformer_nano", device="meta", quantize={"bits": 3}, adapter=folder)
    assert empty.blocks[0].mixer.q_proj.lora_A["default"].weight.is_meta
    with pytest.raises(ValueError, match="of other weights"):
        zoo.create_model("transformer_nano", quantize={"bits": 3}, adapter=folder)


def test_peft_itself(tmp_path):
    """It knows compressed layers where the configuration says what they are, and says that it does not otherwise."""
    options: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "w1"]}
    with pytest.raises(ValueError, match=r"Target module Linear\((.|\n)* is not supported"):
        peft.get_peft_model(compressed(), peft.LoraConfig(**options))
    model = compressed(dtype=torch.float32)
    expected = model(TOKENS)
    tuned: Any = peft.get_peft_model(model, over_records(peft.LoraConfig(**options))).eval()
    assert torch.equal(tuned(TOKENS), expected)
    tuned.train()(TOKENS, labels=TOKENS).backward()
    learns = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert len(learns) == 2 * 2 * 3 and all("lora_" in name and p.grad is not None for name, p in learns.items())
    found = moved(tuned).eval()(TOKENS)
    tuned.save_pretrained(tmp_path)
    config = over_records(peft.LoraConfig.from_pretrained(tmp_path))
    again: Any = peft.PeftModel.from_pretrained(compressed(dtype=torch.float32), str(tmp_path), config=config).eval()
    assert torch.equal(again(TOKENS), found) and not torch.allclose(found, expected)
    with tuned.disable_adapter():
        assert torch.equal(tuned(TOKENS), expected)
    with pytest.raises(ValueError, match="cannot be merged in its place"):
        tuned.merge_and_unload()
    for given, message in (({"use_dora": True}, "LoRA is plain"), ({"init_lora_weights": "pissa"}, "got 'pissa'")):
        with pytest.raises(ValueError, match=message):
            peft.get_peft_model(compressed(), over_records(peft.LoraConfig(**options, **given)))

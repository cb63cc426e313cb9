"""What was done to a model is in its folder, and is done again: order, factors and records after it, and bad input."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import zoo
from zoo.changes import KINDS, Change, apply, changes_of


class Gained(nn.Module):
    """y = g layer(x)."""

    def __init__(self, layer: nn.Module, start: float):
        super().__init__()
        self.layer, self.gain = layer, nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.layer(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gains(Change, kind="test_gains"):
    blocks: tuple[int, ...] = ()
    start: float = 1.0

    def install(self, model: Any) -> None:
        if max(self.blocks) >= len(model.blocks):
            raise ValueError(f"no block {max(self.blocks)}")
        for index in self.blocks:
            model.blocks[index].mlp = Gained(model.blocks[index].mlp, self.start)


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    yield
    del KINDS["test_gains"]


@pytest.fixture
def model() -> Any:
    model = zoo.create_model("transformer_nano")
    apply(model, Gains(blocks=(0, 1)))
    apply(model, Gains(blocks=(1,), start=0.5))
    nn.init.constant_(model.blocks[0].mlp.gain, 1.25)
    return model.eval()


def tokens() -> Tensor:
    return torch.arange(40).reshape(2, 20)


def test_changes_are_made_again_in_their_order(model, tmp_path):
    expected = model(tokens())
    zoo.save_model(model, tmp_path / "saved")
    again: Any = zoo.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    assert torch.equal(again(tokens()), expected)
    assert changes_of(again) == (Gains(blocks=(0, 1)), Gains(blocks=(1,), start=0.5))
    assert isinstance(again.blocks[1].mlp.layer, Gained)
    other: Any = zoo.create_model("transformer_nano", checkpoint_path=tmp_path / "saved").eval()
    assert torch.equal(other(tokens()), expected)
    zoo.convert(tmp_path / "saved", tmp_path / "again")
    assert torch.equal(zoo.create_model(f"local-dir:{tmp_path / 'again'}").eval()(tokens()), expected)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert zoo.model_info(f"local-dir:{tmp_path / 'saved'}").num_parameters == count


def test_a_model_is_created_with_them(model):
    torch.manual_seed(0)
    expected: Any = zoo.create_model("transformer_nano", pretrained=True)
    apply(expected, Gains(blocks=(1,), start=0.5))
    described = {"kind": "test_gains", "blocks": [1], "start": 0.5}
    for change in (described, Gains(blocks=(1,), start=0.5)):
        made: Any = zoo.create_model("transformer_nano", pretrained=True, changes=[change])
        assert changes_of(made) == changes_of(expected)
        assert torch.equal(made(tokens()), expected(tokens()))
    empty: Any = zoo.create_model("transformer_nano", device="meta", changes=[described])
    assert empty.blocks[1].mlp.gain.is_meta


def test_factors_and_records_come_after_them(model, tmp_path):
    zoo.quantize(zoo.factorize(model, 8), bits=4)
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert torch.equal(again(tokens()), model(tokens()))
    assert again.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match=r"test_gains comes before zoo\.factorize and zoo\.quantize"):
        apply(again, Gains(blocks=(0,)))


def test_transformers_makes_them_too(model, tmp_path):
    from zoo.integrations.transformers import wrap

    zoo.save_model(model, tmp_path / "zoo")
    wrap(model).save_pretrained(tmp_path / "theirs")
    for folder in ("zoo", "theirs"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()
        assert torch.equal(loaded(tokens()).logits, model(tokens()))
        assert torch.equal(zoo.create_model(f"local-dir:{tmp_path / folder}").eval()(tokens()), model(tokens()))


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ([{"kind": "test_gain"}], "unknown change 'test_gain', did you mean 'test_gains'"),
        ([{"kind": "test_gains", "block": [1]}], "has no option 'block', did you mean 'blocks'"),
        ([{"kind": "test_gains", "blocks": 1}], "blocks must be "),
        ([{"kind": "test_gains", "blocks": [7]}], "no block 7"),
        ([{"blocks": [1]}], r'a change is described as \{"kind": name'),
        ({"kind": "test_gains"}, "must be a list, got"),
    ],
)
def test_what_a_folder_may_say(model, tmp_path, described, message):
    zoo.save_model(model, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"changes": described}))
    with pytest.raises(ValueError, match=message):
        zoo.create_model(f"local-dir:{tmp_path}")


def test_no_other_layout_has_them_and_a_kind_has_one_meaning(model, tmp_path):
    zoo.save_model(model, tmp_path / "saved")
    with pytest.raises(ValueError, match="changed by test_gains, which no other layout has"):
        zoo.convert(tmp_path / "saved", tmp_path / "theirs", to="transformers")
    assert not (tmp_path / "theirs").exists()
    with pytest.raises(ValueError, match="'test_gains' names the change Gains already"):
        type("Other", (Change,), {}, kind="test_gains")

"""What an adapted model is for: it generates and predicts, is exported, counted, saved and scored as any other."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from adapt.test_contract import inputs, trained

import zoo
from zoo.cli import main

CASES = {"paca": "transformer_nano", "mamba_lora": "mamba2_nano", "dora": "vit_nano"}


def adapted(name: str, kind: str) -> Any:
    torch.manual_seed(0)
    model: Any = zoo.adapt(zoo.create_model(name, pretrained=True).eval(), kind, rank=2)
    trained(model, steps=1, dtype=torch.float32)
    return model


@pytest.mark.parametrize(("kind", "name"), CASES.items())
def test_adapted_models_are_used_as_others(kind, name, tmp_path):
    """With the outputs of the merged one, and without a change of the adapted one."""
    model, merged = adapted(name, kind), zoo.merge_adapter(adapted(name, kind))
    x = inputs(model, dtype=torch.float32)
    with torch.no_grad():
        expected = merged(x)
        torch.testing.assert_close(model(x), expected)
        if name != "vit_nano":
            text = zoo.generate(model, x[:1], 8, temperature=0)
            assert torch.equal(text, zoo.generate(merged, x[:1], 8, temperature=0))
    length = None if name == "vit_nano" else 12
    found, plain = (zoo.profile(one.to("meta"), tokens=length) for one in (copy.deepcopy(model), merged))
    assert found.parameters > plain.parameters and found.phase("forward").flops >= plain.phase("forward").flops
    program = zoo.export_program(model).program
    torch.testing.assert_close(program.module()(x), expected)


def test_a_folder_of_an_adapter_is_a_checkpoint_of_its_model(tmp_path, capsys):
    """For every command that takes one."""
    folder = zoo.save_adapter(adapted("transformer_nano", "paca"), tmp_path / "adapter")
    text = tmp_path / "text.txt"
    text.write_text("The class statement defines a class. " * 4)

    def score(*options: str) -> float:
        assert main(["eval", "transformer_nano", "--text", str(text), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["bits_per_byte"]

    merged = zoo.save_model(zoo.merge_adapter(adapted("transformer_nano", "paca")), tmp_path / "merged")
    found = score("--checkpoint", str(folder))
    assert found != score()
    assert main(["eval", str(merged), "--text", str(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] == found

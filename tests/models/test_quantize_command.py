"""What calibration may be given as, which methods the door names, what a card says and which models are replaced."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from zoo.cli import main
from zoo.layer_pruning import prune_layers
from zoo.layers.quant import Format, install, records
from zoo.quantize import METHODS, Calibration
from zoo.quantize.files import card_rows

SMALL: dict[str, Any] = {"dim": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32, "depth": 2}
TOKENS = torch.arange(2048).view(16, 128) % 251
TEXT = topics["compound"][: 16 * 128]


def model() -> Any:
    torch.manual_seed(0)
    return zoo.create_model("transformer_nano", **SMALL)


def made(**options: Any) -> list[torch.Tensor]:
    found = zoo.quantize(model(), "sketch", **options)
    return [p for record in records(found).values() for p in record.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_tokens_batches_and_a_calibration_are_the_same():
    expected = made(calibration=Calibration([TOKENS[:8], TOKENS[8:]]))
    assert same(made(calibration=TOKENS), expected)
    assert same(made(calibration=[TOKENS[:8], TOKENS[8:]]), expected)
    assert same(made(calibration=(TOKENS[:8], TOKENS[8:])), expected)
    assert not same(made(calibration=TOKENS.flip(1).contiguous() // 2), expected)


@pytest.mark.parametrize("kind", [str, Path])
def test_the_path_of_a_text(kind, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    expected = made(calibration=Calibration.of_text(zoo.load_tokenizer("transformer_nano"), TEXT))
    assert same(made(calibration=kind(tmp_path / "text.txt")), expected)


def test_the_path_of_a_folder_of_images(tmp_path):
    for shade in (10, 200):
        Image.new("RGB", (8, 8), (shade, 0, shade)).save(tmp_path / f"{shade}.png")
    net = zoo.create_model("vit_nano").eval()
    zoo.quantize(net, "sketch", calibration=str(tmp_path))
    assert records(net)


@pytest.mark.parametrize(("given", "error", "message"), [
    ([[1, 2, 3]], TypeError, r"calibration must be inputs .* tokens \(B, T\).* got list of list"),
    (["some text"], TypeError, r"Calibration\.of_text\(tokenizer, text\).* got list of str"),
    (3, TypeError, "got int"),
    ([], ValueError, "at least one batch"),
    (torch.arange(100), ValueError, r"must hold tokens \(B, T\), got a tensor of shape \(8,\)"),
    ("no.txt", FileNotFoundError, r"'no\.txt' is no file or folder; of a text itself take Calibration\.of_text"),
    ("words " * 1000, FileNotFoundError, r"'words words .*' is no file or folder"),
])  # fmt: skip
@pytest.mark.parametrize("call", [
    lambda net, given: zoo.quantize(net, "baq", calibration=given),
    lambda net, given: zoo.sparsify(net, "wanda", calibration=given),
    lambda net, given: prune_layers(net, 1, given),
], ids=["quantize", "sparsify", "prune_layers"])  # fmt: skip
def test_what_is_no_calibration(call, given, error, message):
    net = model()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=message):
        call(net, given)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


def test_others_take_what_quantize_takes():
    assert zoo.sparsify(model(), "wanda", calibration=TOKENS)
    assert len(prune_layers(model(), 1, [TOKENS[:2]]).blocks) == 1


def test_the_door_names_every_method_with_its_paper():
    listed = (inspect.getdoc(zoo.quantize) or "").partition("\nMethods")[2].partition("\nArgs:")[0]
    said = {name: (star, line) for name, star, line in re.findall(r"^    (\w+)(\*?): (.*)$", listed, re.M)}
    assert set(said) == set(METHODS)
    for name, (star, line) in said.items():
        papers = re.findall(r"arXiv (\d{4}\.\d{5})\.$", line)
        assert name == "rtn" or papers[0] in (METHODS[name].__doc__ or "")
        assert bool(star) is METHODS[name].calibrated


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_says_how_it_was_compressed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = zoo.quantize(model(), "baq", calibration=TOKENS, bits=3, group_size=16)
    bits = sorted({record.format.bits for record in records(net).values()})
    zoo.save_model(net, Path("small") / "model")
    text = card(tmp_path / "small" / "model")
    for row, value in {
        "compressed by": "zoo.quantize, baq", "bits of a code": ", ".join(map(str, bits)), "layout": "int",
        "weights a scale": "16",
    }.items():  # fmt: skip
        assert f"| {row} | {value} |" in text
    assert "| bits a weight | " in text and 'zoo.create_model("local-dir:small/model")' in text and "FOLDER" not in text
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    zoo.save_model(zoo.quantize(model(), bits=4, activation_bits=8), tmp_path / "absolute")
    text = card(tmp_path / "absolute")
    assert "| bits of inputs | 8 |" in text and "local-dir:absolute" in text and str(tmp_path) not in text


def test_the_card_of_several_formats():
    net = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4))
    install(net, {"0.weight": Format(bits=3, group_size=16), "1.weight": Format(bits=8, group_size=None)})
    assert card_rows(net) == {"bits of a code": "3, 8", "layout": "int", "weights a scale": "16, all of a row"}


def test_the_card_of_other_changes(tmp_path):
    zoo.save_model(model(), tmp_path)
    assert "changed by" not in card(tmp_path) and "compressed by" not in card(tmp_path)
    zoo.save_model(zoo.sparsify(model()), tmp_path)
    assert "| changed by | sparse |" in card(tmp_path)


@pytest.mark.parametrize("command", [["quantize"], ["sparsify"], ["factorize", "--rank", "2"]])
def test_an_earlier_model_goes_and_is_named_but_never_the_source(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo.save_model(model(), "whole")
    before = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert main([*command, "whole", "small"]) == 0
    assert "in place of" not in capsys.readouterr().out
    assert main([*command, "whole", "small"]) == 0
    assert "small (in place of an earlier model): " in capsys.readouterr().out
    for target in ("whole", str(tmp_path / "whole"), "small/../whole"):
        assert main([*command, "whole", target]) == 2
        assert "holds the source, whose weights would be lost: give another folder" in capsys.readouterr().err
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == before

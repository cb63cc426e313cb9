"""Bits a byte of a text, against a loop that runs the model on every prefix."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

import zoo
from zoo.cli import main

TEXT = "Für jedes Byte, wörtlich: ein Wert."


def built(name: str) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, initializer_range=0.2, dtype=torch.float64).train()


def slowly(model: Any, ids: list[int], window: int | None, stride: int | None) -> float:
    """Summed nats, a token at a time, each given all before it, or what its window holds."""
    model.eval()
    total, start, end = 0.0, 0, len(ids) if window is None else window
    for t in range(1, len(ids)):
        if stride is not None and window is not None and t > end:
            end = min(end + stride, len(ids) - 1)
            start = end - window
        logits = model(torch.tensor([ids[start:t]]))[0, -1]
        total -= logits.log_softmax(-1)[ids[t]].item()
    model.train()
    return total


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [("mamba2_nano", 8, None), ("transformer_nano", 8, None), ("falcon_h1_nano", 100, None), ("mamba2_nano", 8, 3),
     ("transformer_nano", 8, 8), ("transformer_nano", 100, 5)],
)  # fmt: skip
@torch.no_grad()
def test_every_token_is_scored_once(name, window, stride):
    model, tokenizer = built(name), zoo.load_tokenizer(name)
    score = zoo.score_text(model, tokenizer, TEXT, window=window, stride=stride, batch_size=2)
    ids = [0, *TEXT.encode()]
    nats = slowly(model, ids, None if stride is None else window, stride)
    assert (score.tokens, score.num_bytes) == (len(ids) - 1, len(TEXT.encode()))
    assert score.nats == pytest.approx(nats, rel=1e-9)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / (len(ids) - 1))
    assert score.perplexity == pytest.approx(math.exp(nats / (len(ids) - 1)))
    assert model.training


def test_command(tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert main(["eval", "mamba2_nano", "--text", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model: Any = zoo.create_model("mamba2_nano", pretrained=True)
    expected = zoo.score_text(model, zoo.load_tokenizer("mamba2_nano"), TEXT)
    assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte) and found["bytes"] == expected.num_bytes
    file.write_bytes(b"\xff\xfe")
    assert main(["eval", "mamba2_nano", "--text", str(file)]) == 2
    assert "must be text in UTF-8" in capsys.readouterr().err
    assert main(["eval", "mamba2_nano", "--text", str(file), "--images", "photos"]) == 2
    assert "give one of --images and --text" in capsys.readouterr().err


def test_errors():
    model, tokenizer = built("mamba2_nano"), zoo.load_tokenizer("mamba2_nano")
    with pytest.raises(ValueError, match="the text has no token that could be scored"):
        zoo.score_text(model, tokenizer, "")
    with pytest.raises(ValueError, match="stride must be at least 1 and at most 8, got 9"):
        zoo.score_text(model, tokenizer, TEXT, window=8, stride=9)
    other: Any = zoo.create_model("mamba2_nano", vocab_size=1000)
    with pytest.raises(ValueError, match="do not belong together"):
        zoo.score_text(other, tokenizer, TEXT)

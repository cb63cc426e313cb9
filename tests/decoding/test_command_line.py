"""`zoo generate`: what the Python API can do while it decodes, from the command line, with one bad input each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.cli import main

PROMPT = "The import statement combines two operations; "
COMMAND = ["generate", "transformer_nano", "--prompt", PROMPT, "--temperature", "0", "--max-new-tokens", "12"]


def said(capsys, *options: str) -> tuple[str, str]:
    assert main([*COMMAND, *options]) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_every_draft_says_what_the_model_says(capsys):
    plain, _ = said(capsys)
    for options in (
        ("longspec", "--draft.widths", "2,3"), ("rapid:moe_nano", "--draft.budget=20", "--draft.chunk", "4"),
        ("early_exit", "--draft.exit", "1"), ("moe_nano", "--draft.confidence", "0.3"),
    ):  # fmt: skip
        found, counts = said(capsys, "--draft", *options)
        assert found == plain and "drafted tokens accepted" in counts, options


def test_a_prompt_is_shortened_by_a_small_model(capsys, monkeypatch):
    lengths = []

    def shorten(self: Any, prompts: Any, plain: Any = zoo.decoding.SpecPC.shorten) -> Any:
        lengths.append(plain(self, prompts).tokens.shape[1])
        return plain(self, prompts)

    monkeypatch.setattr(zoo.decoding.SpecPC, "shorten", shorten)
    found, _ = said(capsys, "--compress", "moe_nano", "--compress.budget", "6", "--compress.window", "2")
    model, ids = zoo.create_model("transformer_nano", pretrained=True), list(PROMPT.encode())
    draft = zoo.decoding.SpecPC(zoo.create_model("moe_nano", pretrained=True), budget=6, window=2)
    (expected,) = zoo.generate(model, [ids], 12, temperature=0, compress=draft)
    assert found == bytes(expected.tolist()).decode() + "\n" and lengths == [6, 6]


def test_closed_lists_are_forgotten_and_counted(capsys):
    found, counts = said(capsys, "--memory", "tim", "--memory.keep", "0", "--memory.key=none")
    assert found == said(capsys)[0] and "0 tokens left the working memory, which held" in counts


def test_examples_steer(capsys, tmp_path: Path):
    file, pairs = tmp_path / "pairs.jsonl", [["hello", "HELLO"], ["some words", "SOME WORDS"]]
    file.write_text("\n".join(map(json.dumps, pairs)) + "\n\n")
    plain = said(capsys)[0]
    assert said(capsys, "--steer", str(file), "--steer-strength", "0")[0] == plain
    found, _ = said(capsys, "--steer", str(file), "--steer-strength", "2")
    model, ids = zoo.create_model("transformer_nano", pretrained=True), list(PROMPT.encode())
    vectors = zoo.steering.in_context_vectors(model, [(list(a.encode()), list(b.encode())) for a, b in pairs])
    with zoo.steering.steer(model, vectors, 2.0):
        (expected,) = zoo.generate(model, [ids], 12, temperature=0)
    assert found == bytes(expected.tolist()).decode(errors="replace") + "\n" != plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--draft early_exit --draft.exit 9", "before the last: got (9,)"),
        ("--draft early_exit --draft.exits 1", "there is no --draft.exits, did you mean 'exit'"),
        ("--draft rapid:moe_nano --draft.budget many", "wanted for --draft.budget is one like 4096, got 'many'"),
        ("--draft rapid:moe_nano --draft.budget 0", "budget must be an integer of at least 1, got 0"),
        ("--draft.exit 1", "got --draft.exit without --draft NAME"),
        ("--compress moe_nano --compress.budget 3", "the window always stays: got window 64, budget 3"),
        ("--compress.budget 3", "got --compress.budget without --compress MODEL"),
        ("--memory tim --memory.keep -1", "keep must be at least 0, got -1"),
        ("--memory.keep 1", "got --memory.keep without --memory tim"),
        ("--memory tim --draft del", "memory=TIM() does not go with draft="),
        ("--steer nowhere.jsonl", "nowhere.jsonl"),
        ("--steer-strength 1", "got --steer-strength without --steer FILE"),
        ("--prompt.more 1", "unrecognized arguments: --prompt.more 1"),
    ],
)
def test_wrong_options_say_so(capsys, options, message):
    assert main([*COMMAND, *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_pair_of_texts_says_so(capsys, tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('["a", "b"]\n["alone"]\n')
    assert main([*COMMAND, "--steer", str(file)]) == 2
    assert 'line 2: a pair of texts is wanted, ["before", "after"], got' in capsys.readouterr().err

"""What GGUF files say of tokens: llama.cpp reads texts as the tokenizer does, or the tokenizer is refused."""

from __future__ import annotations

import importlib.util
import json
import pydoc_data.topics
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from torch import Tensor

import zoo
from cases.llama_cpp import NOT_HERE, log_probabilities
from zoo.checkpoints.gguf_vocabulary import _WORDS

VOCABULARY = 320
TEXT = "THE with statement's, naïve: 2024 [12345] they'll\n  it"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
ENGLISH = pre_tokenizers.ByteLevel(add_prefix_space=False)
llama_cpp = pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason=NOT_HERE)


def split(digits: str) -> Any:
    cut = pre_tokenizers.Split(Regex(_WORDS % digits), "isolated")
    return pre_tokenizers.Sequence([cut, BYTES])


@pytest.fixture(scope="module")
def merges() -> str:
    """Of pieces that cross words and numbers, learnt from some text, with two special tokens."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.pre_tokenizer = BYTES
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*list(pydoc_data.topics.topics.values())[:5], *["2024 [12345] THE"] * 400]
    found.train_from_iterator((line for text in texts for line in text.splitlines()), trainer)
    return found.to_str()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    found = zoo.create_model("transformer_nano", vocab_size=VOCABULARY).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return found


def made(merges: str, **parts: Any) -> tokenizers.Tokenizer:
    """With other parts than the cut that GPT-2 makes."""
    tokenizer = tokenizers.Tokenizer.from_str(merges)
    for name, part in {"pre_tokenizer": ENGLISH, **parts}.items():
        setattr(tokenizer, name, part)
    return tokenizer


def put(model: Any, tokenizer: tokenizers.Tokenizer, folder: Path, **said: Any) -> Path:
    zoo.save_model(model, folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, **said}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def around(template: str, **ids: int) -> Any:
    return processors.TemplateProcessing(template, None, list(({"<s>": 0, "</s>": 1} | ids).items()))


def expected(model: Any, tokenizer: tokenizers.Tokenizer) -> Tensor:
    ids = tokenizer.encode(TEXT).ids
    assert len(ids) < len(TEXT.encode())
    return model(torch.tensor([ids]))[0, -1].log_softmax(-1)


@llama_cpp
@pytest.mark.parametrize("template", [None, "$A", "<s> $A", "<s> $A </s>", "$A </s>"])
@pytest.mark.parametrize("named", [True, False])
def test_tokens_are_put_around_texts_where_the_tokenizer_puts_them(template, named, merges, model, tmp_path):
    tokenizer = made(merges, **({} if template is None else {"post_processor": around(template)}))
    said = {} if named else {"bos_token": None, "eos_token": None}
    file = zoo.convert(put(model, tokenizer, tmp_path / "saved", **said), tmp_path / "model.gguf", to="gguf")
    found = log_probabilities(file, TEXT, VOCABULARY)
    torch.testing.assert_close(found, expected(model, tokenizer), atol=1e-4, rtol=1e-4)


CUTS = {
    "three digits": split(r"\p{N}{1,3}"),
    "one digit": split(r"\p{N}"),
    "digits and words": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), ENGLISH]),
}


@llama_cpp
@pytest.mark.parametrize(("cut", "ignoring"), [*((name, False) for name in CUTS), ("three digits", True)])
def test_texts_are_cut_as_the_tokenizer_cuts_them(cut, ignoring, merges, model, tmp_path):
    content = json.loads(merges)
    known = content["model"]
    known["ignore_merges"] = ignoring
    del known["vocab"]["".join(known["merges"].pop())]
    known["vocab"]["THE"] = VOCABULARY - 1  # which no merges make
    tokenizer = made(json.dumps(content), pre_tokenizer=CUTS[cut])
    assert ("THE" in tokenizer.encode(TEXT).tokens) == ignoring
    file = zoo.convert(put(model, tokenizer, tmp_path / "saved"), tmp_path / "model.gguf", to="gguf")
    found = log_probabilities(file, TEXT, VOCABULARY)
    torch.testing.assert_close(found, expected(model, tokenizer), atol=1e-4, rtol=1e-4)


REFUSED = {
    "whole texts": ({"pre_tokenizer": BYTES}, r"its pre_tokenizer \(ByteLevel with use_regex False\) has no name"),
    "punctuation": (
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), CUTS["digits and words"]])},
        r'its pre_tokenizer \(\{"type": "Punctuation", .*',
    ),
    "a space before": (
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, '"add_prefix_space": true.* has no name'
    ),
    "small letters": (
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])},
        r"its normalizer \(Lowercase\) changes them first",
    ),
    "two tokens": ({"post_processor": around("<s> <s> $A")}, "it puts <s>, <s> before each"),
    "others": ({"post_processor": around("$A <s>")}, "it puts <s> after each, where there is room for its eos_token"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_not_do_is_refused(name, merges, model, tmp_path):
    parts, message = REFUSED[name]
    folder = put(model, made(merges, **parts), tmp_path / "saved")
    with pytest.raises(ValueError, match=f"texts otherwise than .*{message}.*; take the file away"):
        zoo.convert(folder, tmp_path / "model.gguf", to="gguf")
    assert not (tmp_path / "model.gguf").exists()
    (folder / "tokenizer.json").unlink()
    zoo.convert(folder, tmp_path / "model.gguf", to="gguf")


def test_options_of_merges_are_refused(merges, model, tmp_path):
    tokenizer = made(merges)
    for option, value in (("dropout", 0.5), ("end_of_word_suffix", "</w>")):
        folder = put(model, tokenizer, tmp_path / "saved")
        content = json.loads(tokenizer.to_str())
        content["model"]["merges"] = []
        content["model"][option] = value
        (folder / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"its merges have {option} {value!r}"):
            zoo.convert(folder, tmp_path / "model.gguf", to="gguf")


def test_what_few_texts_show_is_warned_of(merges, model, tmp_path):
    tokenizer = made(merges, normalizer=normalizers.NFC())
    tokenizer.add_tokens([tokenizers.AddedToken("the", lstrip=True)])
    folder = put(model, tokenizer, tmp_path / "saved")
    with pytest.warns(UserWarning, match="form NFC first: give it texts in that form; .* minds what stands beside the"):
        zoo.convert(folder, tmp_path / "model.gguf", to="gguf")

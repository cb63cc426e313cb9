"""Tokenizers: the same ids and texts as transformers', found by name, folder or repository, refused where damaged."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext

import pytest
import torch

import zoo
from cases.tokenizers import CORPUS, KINDS, byte_level, write_tokenizer
from zoo.text import ByteTokenizer, files

TEXTS = [*CORPUS, "", " ", "  two  spaces ", "<|im_end|>", "a</s>b", "\x00\r\n", "é" * 9]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(kind, tmp_path):
    from transformers import PreTrainedTokenizerFast

    folder = write_tokenizer(tmp_path, KINDS[kind]())
    ours, theirs = zoo.load_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (len(theirs), theirs.bos_token_id, (theirs.eos_token_id,))
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special)
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip)
                assert ours.decode(torch.tensor(ids, dtype=torch.long), skip_special_tokens=skip) == expected


def test_bytes():
    tokenizer = zoo.load_tokenizer("mamba2_nano")
    assert isinstance(tokenizer, ByteTokenizer) and tokenizer.vocab_size == 256
    assert tokenizer.encode("né") == [0, 110, 195, 169] and tokenizer.encode("n", add_special_tokens=False) == [110]
    assert tokenizer.decode([0, 110, 195, 169, 0]) == "né" and tokenizer.eos_ids == (0,)
    assert tokenizer.decode([0, 110, 195], skip_special_tokens=False) == "\0n\N{REPLACEMENT CHARACTER}"
    tokenizer.check(zoo.create_model("mamba2_nano"))


def test_files_decide_as_in_transformers(tmp_path):
    """Tokens that tokenizer.json lacks, tokens with properties, and a map of special tokens of an older folder."""
    from transformers import PreTrainedTokenizerFast

    token = {"content": "<extra>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False,
             "__type": "AddedToken"}  # fmt: skip
    size = byte_level().get_vocab_size()
    added = {"added_tokens_decoder": {str(size): {**token, "special": True}}, "eos_token": token, "pad_token": None}
    write_tokenizer(tmp_path / "new", **added)
    write_tokenizer(tmp_path / "old")
    special = {"eos_token": {**token, "content": "</s>"}, "unk_token": "<s>"}
    for folder in ("new", "old"):
        (tmp_path / folder / "special_tokens_map.json").write_text(json.dumps(special))
        ours, theirs = (
            load(tmp_path / folder) for load in (zoo.load_tokenizer, PreTrainedTokenizerFast.from_pretrained)
        )
        assert ours.eos_ids == (theirs.eos_token_id,) == ((size,) if folder == "new" else (1,))
        assert {"bos_token": "<s>"}.items() <= ours.special_tokens.items() == theirs.special_tokens_map.items()
        assert ours.encode("a<extra>  b") == theirs.encode("a<extra>  b")


def test_all_ends_of_a_text(tmp_path):
    folder = write_tokenizer(tmp_path)
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    assert zoo.load_tokenizer(folder).eos_ids == (3, 7)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 3, 2]}')
    assert zoo.load_tokenizer(folder).eos_ids == (3, 1, 2)


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_streaming_never_gives_half_a_character(kind, tmp_path):
    tokenizer = ByteTokenizer() if kind == "bytes" else zoo.load_tokenizer(write_tokenizer(tmp_path, KINDS[kind]()))
    draw = random.Random(0)
    for text in [*(text for text in TEXTS if "</s>" not in text and "<|" not in text), "".join(CORPUS)]:
        text = text.replace("\0", "")
        ids = tokenizer.encode(text, add_special_tokens=False)
        stream = tokenizer.stream()
        pieces = [stream.add(token) for token in ids]
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
        assert "".join(pieces) + stream.end() == tokenizer.decode(ids)
        for cut in {0, len(ids) // 3, len(ids) - 1} - {-1}:  # after a prompt
            stream = tokenizer.stream(ids[:cut])
            tail = "".join(stream.add(token) for token in ids[cut:]) + stream.end()
            whole, head = tokenizer.decode(ids), tokenizer.decode(ids[:cut])
            if whole.startswith(head):
                assert head + tail == whole
    for _ in range(50):  # whatever a model may say
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(1, 40))]
        stream = tokenizer.stream()
        text = "".join(map(stream.add, ids)) + stream.end()
        assert kind == "byte_fallback" or text == tokenizer.decode(ids)


def test_bytes_that_are_no_text_are_not_held_back_for_long():
    stream = ByteTokenizer().stream()
    pieces = [stream.add(token) for token in [0xFF] * 30 + [0xF0, 0x9F, 0x99, 0x82, 65]]
    assert "".join(pieces[:30]).count("\N{REPLACEMENT CHARACTER}") >= 25
    assert "".join(pieces).endswith("\N{REPLACEMENT CHARACTER}🙂A")


def test_stop_strings_end_a_stream_and_are_not_shown():
    for text, stop, expected in [
        ("one\n\ntwo", "\n\n", "one"), ("one\n two", ["\n\n"], "one\n two"), ("ababac", ["abac", "z"], "ab"),
        ("stop", ["top", "op"], "s"), ("one\n", "\n\n", "one\n"), ("fünf🙂sechs", "🙂", "fünf"),
    ]:  # fmt: skip
        stream = ByteTokenizer().stream(stop=stop)
        shown = ""
        for token in text.encode():
            shown += stream.add(token)
            assert expected.startswith(shown)
        assert shown + stream.end() == expected and stream.stopped == (expected != text)
    with pytest.raises(ValueError, match=r"at least one character, got \['a', ''\]"):
        ByteTokenizer().stream(stop=["a", ""])


def test_texts_and_ids_that_are_none():
    tokenizer = ByteTokenizer()
    for call, message in [
        (lambda: tokenizer.encode("a\ud800"), "not UTF-8 at character 1"),
        (lambda: tokenizer.encode(b"a"), "takes a text, got bytes"),
        (lambda: tokenizer.decode([-1]), "integers of at least 0"),
        (lambda: tokenizer.decode(torch.tensor([[1]])), "ids of one text"),
        (lambda: tokenizer.decode([1.5]), "integers of at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert tokenizer.decode([65, 999]) == "A"


def test_a_tokenizer_of_another_model_is_one_error(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer of 256 tokens and the model knows 50,280.*do not belong together"):
        ByteTokenizer().check(zoo.create_model("mamba_nano", vocab_size=50280, device="meta"))
    with pytest.raises(ValueError, match="the model knows 200"):
        ByteTokenizer().check(zoo.create_model("mamba_nano", vocab_size=200))
    more = {str(320 + n): {"content": f"<image{n}>", "special": True} for n in range(5)}
    tokenizer = zoo.load_tokenizer(write_tokenizer(tmp_path, byte_level(320), added_tokens_decoder=more))
    assert (tokenizer.vocab_size, tokenizer.text_size) == (325, 320)
    for size, fits in ((319, False), (320, True), (350, True), (400, False)):
        model = zoo.create_model("mamba_nano", depth=1, vocab_size=size)
        with nullcontext() if fits else pytest.raises(ValueError, match="do not belong together"):
            tokenizer.check(model)
    with pytest.raises(ValueError, match="belongs to a language model, got Vim"):
        ByteTokenizer().check(zoo.create_model("vim_nano"))


def test_a_model_without_a_tokenizer_says_what_to_do(tmp_path):
    folder = zoo.save_model(zoo.create_model("mamba_nano"), tmp_path / "bytes")
    assert isinstance(zoo.load_tokenizer(folder), ByteTokenizer)
    zoo.save_model(zoo.create_model("mamba_nano", vocab_size=300), folder)
    with pytest.raises(ValueError, match=r"has no tokenizer.json: put the model's own there.*AutoTokenizer"):
        zoo.load_tokenizer(f"local-dir:{folder}")
    with pytest.raises(ValueError, match="nothing says which tokenizer belongs to s4_wikitext103"):
        zoo.load_tokenizer("s4_wikitext103")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        zoo.load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "", "is no tokenizer"),
        ("tokenizer.json", "[" * 100_000, "is no tokenizer"),
        ("tokenizer.json", '{"model": ' * 100_000, "is no tokenizer"),
        ("tokenizer.json", "{}", "is no tokenizer"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": [1], "merges": []}}', "is no tokenizer"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}', "is no tokenizer"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "is no tokenizer"),
        ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}', "has no tokens"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"a": ' + "[" * 1000 + "]" * 1000 + "}", "not valid JSON"),
        ("tokenizer_config.json", "not json", "not valid JSON"),
        ("tokenizer_config.json", '{"eos_token": 5}', "eos_token must be a token, got 5"),
        ("tokenizer_config.json", '{"eos_token": {"content": ["a"]}}', "eos_token must be a token"),
        ("tokenizer_config.json", '{"eos_token": "<unheard>"}', "'<unheard>' is no token of tokenizer.json"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be a text"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "chat_template must be a text"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder must hold"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 5}}', "added_tokens_decoder must hold"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9999": "<new>"}}', "has the id 9999, and"),
        ("special_tokens_map.json", '{"bos_token": []}', "bos_token must be a token"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id must be an id"),
        ("generation_config.json", '{"eos_token_id": [2, -1]}', "eos_token_id must be an id"),
        ("chat_template.jinja", "x" * 300_000, "at most 200,000 characters"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ],
)  # fmt: skip
def test_files_that_are_no_tokenizers_are_one_error(file, content, message, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        zoo.load_tokenizer(tmp_path)


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    write_tokenizer(tmp_path)
    monkeypatch.setitem(files.LARGEST, "tokenizer.json", 100)
    with pytest.raises(ValueError, match=r"tokenizer.json has .* bytes; such a file has at most 100"):
        zoo.load_tokenizer(tmp_path)


def test_a_file_pads_and_cuts_no_text(tmp_path):
    made = byte_level()
    made.enable_padding(length=10**6)
    made.enable_truncation(2)
    assert len(zoo.load_tokenizer(write_tokenizer(tmp_path, made)).encode("abcdef xyz")) < 20

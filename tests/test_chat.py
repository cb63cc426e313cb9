"""Conversations: nothing is read twice, an answer can be ended, and the commands that show them."""

from __future__ import annotations

import io
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from cases.tokenizers import byte_level, write_tokenizer
from zoo.cli import main
from zoo.cli import text as cli_text
from zoo.generate.logits import Shaper
from zoo.text import ByteTokenizer

FAMILIES = ["mamba2_nano", "transformer_nano", "falcon_h1_nano"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random model of 320 tokens that chats."""
    torch.manual_seed(0)
    model = zoo.create_model("mamba2_nano", vocab_size=320, depth=1)
    return write_tokenizer(zoo.save_model(model, tmp_path / "model"))


def counted(model: Any) -> list[int]:
    """The tokens that go through a model, in order."""
    seen: list[int] = []
    model.embedding.register_forward_hook(lambda _, inputs, output: seen.extend(inputs[0].flatten().tolist()))
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_is_read_twice(name, tmp_path):
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, vocab_size=320)
    tokenizer = zoo.load_tokenizer(write_tokenizer(tmp_path))
    chat, seen = zoo.Chat(model, tokenizer, system="Be brief."), counted(model)
    answers = ["".join(chat.ask(text, 6, temperature=0)) for text in ("Hello", "And 🙂?", "Bye")]
    unread = 0 if chat.ids == seen else 1
    assert seen == chat.ids[: len(chat.ids) - unread], "each token once, in the order of the conversation"
    roles = [message["role"] for message in chat.messages]
    assert roles == ["system"] + ["user", "assistant"] * 3
    assert [message["content"] for message in chat.messages[2::2]] == answers

    again = model.init_state(1)  # what the model has read is the conversation
    logits = model.eval()(torch.tensor([seen]), again)[:, -1]
    rest = torch.tensor([tokenizer.encode("x", add_special_tokens=False)])
    torch.testing.assert_close(model(rest, chat._state), model(rest, again), rtol=1e-4, atol=1e-4)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("cut", [False, True])
def test_a_turn_reads_what_the_template_writes_after_the_answer(cut, folder, monkeypatch):
    """Whether the answer ended by its own token, which the template writes, or was cut short."""
    model: Any = zoo.create_model(f"local-dir:{folder}")
    tokenizer = zoo.load_tokenizer(folder)
    script = iter([40, 41, 42] + [tokenizer.eos_ids[0]] * 3)
    monkeypatch.setattr(Shaper, "drawn", lambda self, logits: torch.tensor([next(script)]))
    chat, seen = zoo.Chat(model, tokenizer), counted(model)
    said = "".join(chat.ask("Hello", 3 if cut else 9))
    "".join(chat.ask("Bye", 9))
    begin, end = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"
    parts = begin.format("Hello"), end + begin.format("Bye")
    first, second = (tokenizer.encode(part, add_special_tokens=False) for part in parts)
    assert said == tokenizer.decode([40, 41, 42]) and seen == chat.ids == [*first, 40, 41, 42, *second]


def test_an_answer_that_is_ended_leaves_the_conversation_whole(folder):
    model: Any = zoo.create_model(f"local-dir:{folder}")
    tokenizer = zoo.load_tokenizer(folder)
    chat, seen = zoo.Chat(model, tokenizer), counted(model)
    answer = chat.ask("Hello", 50, temperature=0)
    pieces = [next(answer) for _ in range(4)]
    answer.close()
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    "".join(chat.ask("Again", 5, temperature=0))
    assert seen in (chat.ids, chat.ids[:-1])
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        chat.ask("Bye", 5, temperature=-1)
    assert len(chat.messages) == 4, "what cannot be asked is not said"


def test_plain_text_goes_on(tmp_path):
    model: Any = zoo.create_model("mamba2_nano", pretrained=True)
    chat, seen = zoo.Chat(model, ByteTokenizer(), plain=True), counted(model)
    said = "".join(chat.ask("The import ", 8, temperature=0)) + "|" + "".join(chat.ask("and then", 8, temperature=0))
    assert bytes(chat.ids) == b"\0" + f"The import {said.replace('|', 'and then')}".encode() and chat.ids[:-1] == seen
    with pytest.raises(ValueError, match="they do not belong together"):
        zoo.Chat(model, zoo.load_tokenizer(write_tokenizer(tmp_path, byte_level(400))), plain=True)
    with pytest.raises(ValueError, match="plain text has no system message"):
        zoo.Chat(model, ByteTokenizer(), plain=True, system="Be brief.")


@pytest.mark.parametrize("name", zoo.list_models("*_nano", task="language", pretrained=True))
def test_generate_streams_text_of_every_language_model(name, capsys):
    assert main(["generate", name, "--prompt", "The é", "--max-new-tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("The é")


def test_generate_reads_the_tokenizer_of_a_folder(folder, capsys):
    options = ["--max-new-tokens", "12", "--repetition-penalty", "1.2", "--min-p", "0.01", "--seed", "3"]
    assert main(["generate", str(folder), "--prompt", "Hello", *options]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Hello") and len(text) > 7
    stop = text[7:9].strip() or text[6:8]
    assert main(["generate", str(folder), "--prompt", "Hello", *options, "--stop", stop]) == 0
    assert capsys.readouterr().out == text[: text.index(stop, 5)] + "\n"


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_chat_answers_each_line_until_the_end(kind, folder, capsys, monkeypatch):
    typed: Any = ["Hello", "", KeyboardInterrupt, "Bye", EOFError]

    def read(prompt: str = "") -> str:
        assert prompt == "> "
        one = typed.pop(0)
        if isinstance(one, str):
            return one
        raise one

    if kind == "pipe":
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nBye"))
    else:
        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    asked: list[str] = []
    ask = zoo.Chat.ask
    monkeypatch.setattr(zoo.Chat, "ask", lambda self, text, *args, **options: asked.append(text) or ask(self, text, 3))
    assert main(["chat", str(folder), "--system", "Be brief."]) == 0
    assert asked == ["Hello", "Bye"] and capsys.readouterr().out.count("\n") >= 2


def test_control_c_ends_an_answer_and_the_next_turn_is_answered(folder, capsys, monkeypatch):
    put, pieces = cli_text.put, []

    def interrupting(text: str) -> None:
        put(text)
        pieces.append(text)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(cli_text, "put", interrupting)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nBye\n"))
    before = signal.getsignal(signal.SIGINT)  # a shell's background ignores it
    script = iter([40] * 3 + [41, 3])
    monkeypatch.setattr(Shaper, "drawn", lambda self, logits: torch.tensor([next(script)]))
    assert main(["chat", str(folder)]) == 0
    tokenizer = zoo.load_tokenizer(folder)
    assert capsys.readouterr().out == f"{tokenizer.decode([40]) * 3}\n{tokenizer.decode([41])}\n"
    assert signal.getsignal(signal.SIGINT) is before

    pieces.clear()
    script = iter([40] * 9)
    assert main(["generate", str(folder), "--prompt", "x", "--max-new-tokens", "9"]) == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "vim_nano"], "text needs a language model, got Vim"),
        (["generate", "vim_nano"], "text needs a language model, got Vim"),
        (["chat", "mamba2_nanoo"], "unknown model 'mamba2_nanoo', did you mean"),
        (["chat", "mamba2_nano"], "has no chat template: put a chat_template.jinja"),
        (["chat", "mamba2_nano", "--plain", "--system", "x"], "plain text has no system message"),
        (["chat", "mamba2_nano", "--plain", "--top-k", "0"], "top_k must be at least 1"),
        (["generate", "mamba2_nano", "--temperature", "-1"], "temperature must be at least 0"),
        (["generate", "mamba2_nano", "--stop", ""], "at least one character"),
        (["generate", "MODEL"], "MODEL has a tokenizer of 290 tokens and the model knows 400: they do not belong"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    monkeypatch.chdir(tmp_path)
    write_tokenizer(zoo.save_model(zoo.create_model("mamba_nano", depth=1, vocab_size=400), "MODEL"), byte_level(290))
    assert main(arguments) == 2
    output, error = capsys.readouterr()
    assert output == "" and error.count("\n") == 1 and message in error


def test_chat_continues_plain_text_where_there_is_no_template(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("The import statement"))
    assert main(["chat", "mamba2_nano", "--plain", "--max-new-tokens", "20", "--temperature", "0"]) == 0
    assert len(capsys.readouterr().out) > 10


def test_a_pipe_that_is_closed_ends_the_command(monkeypatch, capsys):
    def closed(text: str) -> None:
        raise BrokenPipeError

    moved: list[Any] = []
    monkeypatch.setattr(cli_text, "put", closed)
    monkeypatch.setattr(os, "dup2", lambda *given: moved.append(given))
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 77, raising=False)
    assert main(["generate", "mamba2_nano", "--max-new-tokens", "3"]) == 141 and [to for _, to in moved] == [77]
    assert capsys.readouterr().err == ""


def test_a_terminal_is_not_commanded(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    cli_text.put("a\x1b[2J\tb\n👩\u200d🚀")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[2J\tb\n👩\u200d🚀"


def test_the_example_talks(capsys):
    example = Path(__file__).resolve().parent.parent / "examples" / "chat.py"
    chat = runpy.run_path(str(example))["main"]()
    assert f"({len(chat.ids)} tokens, each read once)" in capsys.readouterr().out

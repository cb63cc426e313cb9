"""From text to token ids and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.text.stream import TextStream
from zoo.text.template import ChatTemplate, Messages

DOCUMENT = 0  # the byte that precedes every document in training (zoo.train.data.text), and so ends the one before
FULL = 0.9  # of a model's tokens that its tokenizer has at least: tables are padded, by 3 % in published models


class Tokenizer(ABC):
    """Text to token ids and back; ``zoo.load_tokenizer`` makes one.

    Attributes:
        source: where it comes from, for errors.
        vocab_size: one more than the largest id.
        text_size: one more than the largest id of what is no added token; Gemma 3 has some beyond its model's table.
        bos_id: the id that begins a text, None where none does.
        eos_ids: the ids that end one, the tokenizer's own first.
        special_tokens: such as {"bos_token": "<s>"}; templates know them by these names.
        templates: name -> chat template.
    """

    source: str
    vocab_size: int
    text_size: int
    bos_id: int | None
    eos_ids: tuple[int, ...]

    def __init__(self) -> None:
        self.special_tokens: dict[str, str] = {}
        self.templates: dict[str, ChatTemplate] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, vocab_size={self.vocab_size})"

    @abstractmethod
    def _encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: any.
            add_special_tokens: also those that the tokenizer puts around a text, such as one that begins it.

        Raises:
            ValueError: for what is no text, or holds half a surrogate pair, which has no bytes.
        """
        if not isinstance(text, str):
            raise ValueError(f"encode takes a text, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not UTF-8 at character {error.start}") from error
        return self._encode(text, add_special_tokens)

    def decode(self, ids: Iterable[int] | Tensor, *, skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, and ids beyond the vocabulary nothing.

        Args:
            ids: a list, or a tensor of one dimension.
            skip_special_tokens: leave out those that stand for no text.

        Raises:
            ValueError: for ids that are negative or no integers.
        """
        given: Any = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if not isinstance(given, list) or not all(isinstance(one, int) and one >= 0 for one in given):
            raise ValueError(f"decode takes the ids of one text, integers of at least 0, got {str(ids)[:80]}")
        return self._decode([one for one in given if one < self.vocab_size], skip_special_tokens)

    def stream(self, context: Iterable[int] = (), stop: str | Sequence[str] = ()) -> TextStream:
        """A decoder for tokens as they come, after those of ``context``, up to the first of the ``stop`` strings."""
        return TextStream(partial(self.decode, skip_special_tokens=True), context, stop)

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = True,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The text of a conversation, by the chat template.

        Args:
            messages: such as [{"role": "user", "content": "Hello"}].
            add_generation_prompt: end with what begins an answer.
            template: the name of one of several templates; "default", or "tool_use" where there are ``tools``.
            variables: what else the template knows, ``tools`` and ``enable_thinking`` for two.

        Raises:
            ValueError: where there is no template, or it refuses the messages.
        """
        name = template or ("tool_use" if variables.get("tools") and "tool_use" in self.templates else "default")
        if name not in self.templates:
            have = f"; it has {', '.join(self.templates)}" if self.templates else ""
            raise ValueError(
                f"{self.source} has no chat template{f' {name!r}' if template or have else ''}{have}: put a "
                "chat_template.jinja beside its tokenizer.json, or continue plain text (`zoo chat --plain`, encode)"
            )
        given = {**self.special_tokens, **variables, "add_generation_prompt": add_generation_prompt}
        return self.templates[name].render(messages, **given)

    def chat(self, messages: Messages, **options: Any) -> list[int]:
        """The ids of a conversation; arguments and errors are those of ``render``."""
        return self.encode(self.render(messages, **options), add_special_tokens=False)

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError unless this can be the tokenizer of a language model, by their sizes."""
        size = getattr(getattr(model, "config", None), "vocab_size", None)
        if size is None:
            raise ValueError(f"a tokenizer belongs to a language model, got {type(model).__name__}")
        if self.vocab_size < FULL * size or self.text_size > size:
            raise ValueError(
                f"{self.source} has a tokenizer of {self.vocab_size:,} tokens and the model knows {size:,}: they do "
                "not belong together; load the model's own, or model.resize_token_embeddings(tokenizer.vocab_size) "
                "and train it"
            )


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as they are, and byte 0, which no text has, before and after a document: that of the nanos."""

    def __init__(self, source: str = "bytes") -> None:
        super().__init__()
        self.source, self.bos_id, self.eos_ids = source, DOCUMENT, (DOCUMENT,)
        self.vocab_size = self.text_size = 256

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [*([DOCUMENT] if add_special_tokens else []), *text.encode()]

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(one for one in ids if one != DOCUMENT or not skip_special_tokens).decode(errors="replace")

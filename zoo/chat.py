"""A conversation with a language model that keeps its state: nothing is read twice."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from typing import Any

from zoo.generate import stream
from zoo.language.base import LanguageModel
from zoo.text.tokenizer import Tokenizer


class Chat:
    """Asks a model, turn after turn.

    The state has read what was said before; a turn reads only what the chat template writes after the last answer, so
    that the model's own tokens stay as it said them.

    Args:
        model: a language model.
        tokenizer: the model's, from ``zoo.load_tokenizer``, with a chat template unless ``plain``.
        system: what the model is told before the first turn; not with ``plain``.
        plain: without a chat template: a turn is text that the model continues.
        variables: what else the template knows, such as ``enable_thinking=False``.

    Attributes:
        messages: said so far, as the template has them.
        ids: read or said so far, in order.

    Raises:
        ValueError: for a tokenizer of another model, or one without a chat template.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        plain: bool = False,
        **variables: Any,
    ):
        tokenizer.check(model)
        self.model, self.tokenizer, self.plain, self.variables = model, tokenizer, plain, variables
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.ids: list[int] = []
        self._unread: list[int] = []  # the newest token, which the state has not seen
        self._state = model.init_state(1)
        if plain and (system is not None or variables):
            raise ValueError("plain text has no system message and no template to give variables to")
        if not plain:
            self._text("Hello")  # a template that is missing is told now

    def ask(self, text: str, max_new_tokens: int = 512, **options: Any) -> Generator[str, None, None]:
        """The answer, in pieces of whole characters as they come; closing the iterator ends it, and the chat goes on.

        Args:
            text: of the user's turn.
            max_new_tokens, options: of ``zoo.stream``.

        Raises:
            ValueError: for messages that the template refuses, or options out of range; nothing was read then.
        """
        new = self.tokenizer.encode(self._text(text), add_special_tokens=self.plain and not self.ids)
        given = self._unread + new
        if not given:
            raise ValueError("there is no text to answer")
        options = {"tokenizer": self.tokenizer, **options}
        steps = stream(self.model, [given], max_new_tokens, state=self._state, **options)
        return self._answer(text, given, new, steps, options.get("stop", ()))

    def _answer(self, text, given, new, steps, stop) -> Generator[str, None, None]:
        self.ids += new
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        shown = self.tokenizer.stream(given, stop)
        try:
            for step in steps:
                token = int(step.tokens)
                self._unread = [] if token in self.tokenizer.eos_ids else [token]  # the template writes the end
                self.ids += self._unread
                yield self._said(shown.add(token))
            yield self._said(shown.end())
        finally:
            steps.close()

    def _said(self, piece: str) -> str:
        self.messages[-1]["content"] += piece
        return piece

    def _text(self, text: str) -> str:
        """What the model has to read before it answers the next turn."""
        if self.plain:
            return text
        turn, mark = {"role": "user", "content": text}, uuid.uuid4().hex
        asked = self.messages[-1:] and self.messages[-1]["role"] == "assistant"
        before = [*self.messages[:-1], {"role": "assistant", "content": mark}] if asked else self.messages
        whole = self.tokenizer.render([*before, turn], **self.variables)
        return whole.rpartition(mark)[2] if asked else whole

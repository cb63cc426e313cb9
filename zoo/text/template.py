"""Chat templates: from messages to the text that a model was trained to answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

LONGEST = 200_000  # characters of a template; published ones have at most some 30,000

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A jinja2 template, rendered as transformers does, in a sandbox.

    Args:
        text: of the template.
        source: where it comes from, for errors.

    Raises:
        ValueError: for a template that is too long.
    """

    def __init__(self, text: str, source: str):
        if len(text) > LONGEST:
            raise ValueError(f"{source}: a chat template has at most {LONGEST:,} characters, got {len(text):,}")
        self.text, self.source = text, source

    def render(self, messages: Messages, **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: each with a role ("system", "user", "assistant") and a content; fields that are None are left out.
            variables: what else the template knows: ``add_generation_prompt``, ``tools``, special tokens, ...

        Raises:
            ValueError: for messages that are none, a template that is no jinja2, that does what a template may not or
                refuses the messages.
        """
        from jinja2 import TemplateError
        from jinja2.exceptions import SecurityError, TemplateSyntaxError

        from zoo.text.sandbox import render

        given = _plain({"tools": None, "documents": None, **variables, "messages": _checked(messages)})
        try:
            return render(self._compiled, given)
        except TemplateSyntaxError as error:
            raise ValueError(f"{self.source}: the chat template is no jinja2, line {error.lineno}: {error}") from error
        except SecurityError as error:
            raise ValueError(f"{self.source}: the chat template does what none may: {error}") from error
        except TemplateError as error:
            raise ValueError(f"{self.source}: the chat template refuses these messages: {error}") from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ValueError(
                f"{self.source}: the chat template fails on these messages: {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def _compiled(self) -> Any:
        from zoo.text.sandbox import Sandbox

        return Sandbox().from_string(self.text)


def templates(stored: Any, source: str) -> dict[str, ChatTemplate]:
    """Name -> template, of the ``chat_template`` of a tokenizer_config.json: a text, "default", or several with names.

    Raises:
        ValueError: for anything else.
    """
    named = [{"name": "default", "template": stored}] if isinstance(stored, str) else stored
    found: dict[str, ChatTemplate] = {}
    for entry in named if isinstance(named, list) else [named]:
        name, text = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(
                f"{source}: chat_template must be a text, or a list of objects with a name and a template, got "
                f"{str(stored)[:80]!r}; fetch it again"
            )
        found[name] = ChatTemplate(text, source)
    return found


def _checked(messages: Any) -> list[dict[str, Any]]:
    given: Any = messages if isinstance(messages, (list, tuple)) else []
    if not given or not all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in given):
        raise ValueError(
            "messages must be a list of at least one, such as [{'role': 'user', 'content': 'Hello'}], got "
            f"{str(messages)[:80]!r}"
        )
    return [{key: value for key, value in message.items() if value is not None} for message in given]


def _plain(variables: dict[str, Any]) -> dict[str, Any]:
    """Copies of JSON's own types alone: a template reaches nothing of the caller's."""
    try:
        return json.loads(json.dumps(variables))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"a chat template is given texts, numbers, lists and objects alone: {error}") from error

"""Text as it comes: token by token, whole characters only, and nothing of what ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no character (yet)
LONGEST = 4  # bytes, and so tokens, of a character


class TextStream:
    """Decodes token after token; the texts that ``add`` and ``end`` return are the text of all together.

    What may be the beginning of a character, or of a stop string, is kept back until it is known.

    Args:
        decode: of a tokenizer, from ids to text.
        context: ids that come before, a prompt's for one, which tell how the first is written (a space in front of it,
            or none); their text is not returned.
        stop: strings, of which the first to appear ends the text; it is not returned, nor what follows.

    Attributes:
        stopped: a stop string has appeared.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], context: Iterable[int] = (), stop: str | Sequence[str] = ()
    ):
        self.decode, self.stop, self.stopped = decode, stop_strings(stop), False
        self._ids = list(context)  # the newest piece that was returned, and what came after it
        self._piece, self._written = 0, len(self._ids)  # where that piece begins and ends
        self._held = ""  # text that may become a stop string

    def add(self, token: int) -> str:
        """The text that a further token makes certain; often "" ."""
        if self.stopped:
            return ""
        self._ids.append(int(token))
        return self._until_stop(self._fresh())

    def end(self) -> str:
        """What was kept back, when no token follows."""
        if self.stopped:
            return ""
        text = self._until_stop(self._text(len(self._ids)))
        held, self._held = self._held, ""
        return text + held

    def _fresh(self) -> str:
        fresh = self._text(len(self._ids))
        if not fresh.endswith(BROKEN):
            return self._move(fresh, len(self._ids))
        if len(self._ids) - self._written > LONGEST:  # the oldest can be no part of a character that is to come
            return self._move(self._text(self._written + 1), self._written + 1)
        return ""

    def _text(self, end: int) -> str:
        """The text of the ids from the first not returned to ``end``."""
        before, text = self.decode(self._ids[: self._written]), self.decode(self._ids[:end])
        return text[len(before) :] if text.startswith(before) else self.decode(self._ids[self._written : end])

    def _move(self, text: str, end: int) -> str:
        """The ids up to ``end`` are written; those before the last that had a text tell nothing about the next."""
        if text:
            self._ids, self._piece, end = self._ids[self._piece :], self._written - self._piece, end - self._piece
        self._written = end
        return text

    def _until_stop(self, fresh: str) -> str:
        text = self._held + fresh
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One or several stop strings.

    Raises:
        ValueError: for an empty one, or what is no text.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(one, str) and one for one in strings):
        raise ValueError(f"stop strings must be texts of at least one character, got {stop!r}")
    return strings


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that begin a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

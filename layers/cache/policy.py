"""The contract of a cache policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.layers.attention.state import KeyValueState


@dataclass(frozen=True)
class Policy:
    """What is evicted, and when: a method fills one of the hooks, which may call ``state.keep``.

    A slot keeps the position of its token, so that evicting others turns neither its key nor those of later tokens.
    """

    def after_prefill(self, state: KeyValueState) -> None:
        """After a call with several new tokens, which have attended to everything held."""

    def after_step(self, state: KeyValueState) -> None:
        """After a call with one new token."""

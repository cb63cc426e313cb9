"""Models by kind, for tests of a mechanism that has nothing to do with most of a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

# A recurrence, a cache of keys, latent keys with experts, a shared block, tokens that choose, are chosen and recur,
# convolutions, complex numbers; images, channels, image generation, segmentation, classified text, vectors.
KINDS = (
    "mamba2_nano", "transformer_nano", "deepseek_nano", "zamba2_nano", "routing_nano", "mod_nano", "mor_nano",
    "longconv_nano", "s4_nano", "vim_nano", "shvit_nano", "axial_nano", "revunet3d_nano", "s4_text_nano",
    "drope_nano",
)  # fmt: skip


def by_kind(names: Iterable[str], kinds: Sequence[str] = KINDS) -> list[Any]:
    """All the names; those of no kind of their own are ``slow``."""
    return [pytest.param(name, marks=[] if name in kinds else [pytest.mark.slow]) for name in names]

"""How a kernel is compared with its reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cases import accuracy


@pytest.fixture
def assert_accurate() -> Callable:
    """``cases.accuracy.assert_accurate``."""
    return accuracy.assert_accurate

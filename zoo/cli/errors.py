"""What the user can mend is told in one line; everything else is a bug, with its traceback."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
PARSER_NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
    "Problem with",
)
EXTRAS = {  # package -> the extra of pyproject.toml that installs it
    "transformers": "text", "datasets": "text", "onnx": "export", "onnxscript": "export",
    "mamba_ssm": "cuda", "lm_eval": "eval", "peft": "peft", "gymnasium": "worlds", "ale_py": "atari",
}  # fmt: skip


class UsageError(Exception):
    """What the user asked for cannot be done as asked; its message is the one line they read."""


def checked(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call what checks the user's arguments; its errors are theirs to read in a line, without a traceback."""
    try:
        return function(*args, **kwargs)
    except (argparse.ArgumentError, ValueError, TypeError, OSError) as error:
        raise UsageError(str(error)) from error


def how_to_install(error: ModuleNotFoundError) -> str:
    """The way out where an optional package is not installed.

    Raises:
        ModuleNotFoundError: `error` itself, of any other package.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return f"this needs {package}, which is not installed: pip install 'efficient-zoo[{EXTRAS[package]}]'"


def one_line(error: UsageError) -> str:
    """The message without the lines in which jsonargparse lists the types it has tried."""
    lines = [re.sub(r"^(\s|- )+", "", line).rstrip() for line in str(error).splitlines()]  # - its bullets, no --options
    return " ".join(line for line in lines if not line.startswith(PARSER_NOISE))

"""A module of another class with the same parts."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def recast(module: nn.Module, kind: type[Module]) -> Module:
    """A module of class ``kind`` that has the parameters, children and attributes of ``module``, which stays."""
    made = kind.__new__(kind)
    made.__dict__.update(vars(module))
    for held in ("_parameters", "_buffers", "_modules"):
        made.__dict__[held] = dict(getattr(module, held))
    made.__dict__.pop("adapter", None)  # its mark
    return made

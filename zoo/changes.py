"""What is done to a model after it was built, kept in its folder and done again before its weights are loaded."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn

from zoo.config import from_json
from zoo.layers.adapt import before, require_unadapted
from zoo.layers.lowrank import ranks_in, restored
from zoo.layers.quant import records
from zoo.quantize.files import formats, with_records
from zoo.registry import nearest

KEY = "changes"
KINDS: dict[str, type[Change]] = {}


class Change(ABC):
    """One change of a model's modules, as a frozen dataclass: what must be known to make it again.

    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Exits(zoo.changes.Change, kind="exits"):
    ...     after: tuple[int, ...] = ()
    ...
    ...     def install(self, model): ...

    ``apply(model, Exits(after=(1, 3)))`` installs it and remembers it; ``zoo.save_model`` writes all there were, in
    their order, and ``create_model`` makes them again. Fields are of the kinds that a configuration's are, each with a
    default. Weights are no part of it: they are in the state dict.

    Attributes:
        last: it comes after factors and records, as adapters do (``zoo.adapt``), and not before them.
    """

    kind: ClassVar[str]
    last: ClassVar[bool] = False

    def __init_subclass__(cls, *, kind: str = "", **rest: Any):
        super().__init_subclass__(**rest)
        if not kind:  # a base of others
            return
        known = KINDS.setdefault(kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{kind!r} names the change {known.__qualname__} already: take another kind")
        cls.kind, KINDS[kind] = kind, cls

    @abstractmethod
    def install(self, model: nn.Module) -> None:
        """Put the modules in place, with fresh weights, on the device and in the dtype of those that were there.

        Raises:
            ValueError: for a model that cannot be changed so; it is as it was then.
        """


def apply(model: nn.Module, change: Change) -> None:
    """Install a change, in place, and remember it.

    Raises:
        ValueError: for a model whose matrices are factors (``zoo.factorize``) or records (``zoo.quantize``), or that
            has adapters, all of which come later; for one that processes share; or as the change has it.
    """
    if getattr(model, "parallel", None) is not None:
        raise ValueError(f"{change.kind} comes before zoo.parallelize: change the model before it is shared out")
    if not change.last:
        require_unadapted(model, change.kind)
        if ranks_in(model) or records(model):
            raise ValueError(f"{change.kind} comes before zoo.factorize and zoo.quantize: make it on the plain model")
    change.install(model)
    remember(model, change)


def remember(model: nn.Module, change: Change) -> None:
    """Note a change that has been made."""
    model.changes = (*changes_of(model), change)  # type: ignore[assignment]


def changes_of(model: nn.Module) -> tuple[Change, ...]:
    """Those that were made, the first one first."""
    return getattr(model, KEY, ())  # type: ignore[return-value]


def described_changes(model: nn.Module) -> dict[str, Any]:
    """What ``config.json`` says of them: {"changes": [{"kind": "exits", "after": [1, 3]}, ...], "low_ranks": {...}};
    empty for a model as it was built."""
    made = [{"kind": change.kind, **dataclasses.asdict(change)} for change in changes_of(model)]  # type: ignore[call-overload]
    parts = {KEY: made, "low_ranks": {before(model, name): rank for name, rank in ranks_in(model).items()}}
    return {key: part for key, part in parts.items() if part}


def read_changes(content: Mapping[str, Any]) -> tuple[Change, ...]:
    """The changes that the content of a ``config.json`` describes.

    Raises:
        ValueError: for a kind that nothing imported has defined, or fields that it does not have.
    """
    found = content.get(KEY) or []
    if not isinstance(found, list):
        raise ValueError(f"{KEY!r} must be a list, got {found!r}")
    return tuple(as_change(part) for part in found)


def as_change(described: Mapping[str, Any]) -> Change:
    """The change that {"kind": ..., field: value, ...} describes.

    Raises:
        ValueError: for a kind that nothing imported has defined, or fields that it does not have.
    """
    if not isinstance(described, Mapping) or not isinstance(described.get("kind"), str):
        raise ValueError(f'a change is described as {{"kind": name, field: value, ...}}, got {described!r}')
    fields = dict(described)
    kind = fields.pop("kind")
    if kind not in KINDS:
        raise ValueError(
            f"unknown change {kind!r}{nearest(kind, KINDS)}; changes: "
            f"{', '.join(sorted(KINDS))}; import the module that defines it first"
        )
    try:
        return from_json(KINDS[kind](), kind, fields)
    except TypeError as error:
        raise ValueError(str(error)) from error


def rebuilding(build: Callable[[Any], nn.Module], content: Mapping[str, Any]) -> Callable[[Any], nn.Module]:
    """``build``, followed by all that the content of a ``config.json`` says was done: changes, then the factors of
    ``zoo.factorize``, then the records of ``zoo.quantize``, then adapters, all without the weights."""
    changes = read_changes(content)
    first, last = ([change for change in changes if change.last is late] for late in (False, True))
    changed = restored(_with_changes(build, first), content.get("low_ranks") or {})
    return _with_changes(with_records(changed, formats(content)), last)


def _with_changes(build: Callable[[Any], nn.Module], changes: Sequence[Change]) -> Callable[[Any], nn.Module]:
    if not changes:
        return build

    def built(config: Any) -> nn.Module:
        model = build(config)
        for change in changes:
            apply(model, change)
        return model

    return built

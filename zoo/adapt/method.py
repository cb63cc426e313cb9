"""What an adapter is: a change of a model that leaves its weights as they are, is small, and can be taken out again."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from zoo.changes import Change, apply, as_change, changes_of
from zoo.layers.adapt import Mark, before, mark_of, placed, put, undone_on_failure
from zoo.layers.batch_norm import TraceableNorm
from zoo.layers.precision import Packed
from zoo.layers.quant import Record, records
from zoo.layers.quant.frozen import ADAPTERS as WITH_RECORDS
from zoo.layers.sparse import SparseMatrix
from zoo.patterns import matched
from zoo.registry import nearest

Model = TypeVar("Model", bound=nn.Module)
INTO = ("float", "nearest")
ADAPTERS: dict[str, type[Adapter]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter(Change):
    """One way to tune few parameters: subclass it as a frozen dataclass, ``class PaCA(Adapter, kind="paca")``.

    A method says which modules it puts in the place of others (``modules``), what their new parts are called (``adds``)
    and what becomes of them in a plain model (``merged``). The rest is here: everything but these parts is frozen, they
    are what a file holds, and names are checked before anything is changed. An untrained adapter changes no output.

    Attributes:
        adds: children of its modules, parameters, buffers or modules, that are new; the parameters in them learn.
        inner: the child that is the module in whose place one of its modules stands; None where there is none.
        alone: it suffers no other adapter in its model.
        mergeable: it can become a part of a plain model's weights.
    """

    last: ClassVar[bool] = True
    adds: ClassVar[tuple[str, ...]] = ()
    inner: ClassVar[str | None] = None
    alone: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True

    targets: tuple[str, ...] = ()
    """Patterns of the names of layers, such as "*.q_proj"; none for all that it can be put on but the head."""
    also: tuple[str, ...] = ()
    """Patterns of the names of further parameters that learn as they are, such as "head.*"."""

    def __init_subclass__(cls, *, kind: str = "", **rest: Any):
        super().__init_subclass__(kind=kind, **rest)
        if kind:
            ADAPTERS[kind] = cls

    @abstractmethod
    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Name -> what goes in the place of the module of that name; the model stays as it is.

        Raises:
            ValueError: for a model or options that do not fit.
        """

    def merges(self, model: nn.Module) -> bool:
        """Whether it can become a part of the weights of a model that has it, without a choice between ways."""
        return self.mergeable

    def merged(self, module: Any, into: str | None = None) -> nn.Module:
        """What goes in the place of one of its modules in a plain model of the same outputs; ``into`` as
        ``merge_adapter`` has it."""
        raise NotImplementedError

    @contextmanager
    def damped(self, module: Any, factor: float) -> Iterator[None]:
        """Within it what one of its modules adds to its layer is multiplied; afterwards all is as it was, bit for bit.

        Raises:
            ValueError: for a method that adds nothing that could be.
        """
        raise ValueError(f"what {self.kind} adds cannot be damped: take lora, dora or paca")
        yield

    def fits(self, module: nn.Module) -> bool:
        """Whether it can be put on a module."""
        return isinstance(module, nn.Linear)

    def install(self, model: nn.Module) -> None:
        """Put its modules in place and freeze all but what it adds; see ``Change``."""
        there = adapters_of(model)
        if clash := next((other.kind for other in there if other.alone or self.alone), None):
            raise ValueError(f"{self.kind} and {clash} exclude each other: merge or leave out one of them")
        found = [name for name, _ in model.named_parameters()]
        for pattern in self.also:
            if not any(fnmatchcase(before(model, name), pattern) for name in found):
                raise ValueError(f"also: {pattern!r} is no parameter's name{nearest(pattern, found)}")
        with undone_on_failure(model):
            self._put(model, there)

    def _put(self, model: nn.Module, there: Sequence[Adapter]) -> None:
        made = self.modules(model)
        if not there:
            model.requires_grad_(False)
        for name, module in made.items():
            module.requires_grad_(False).train(model.get_submodule(name).training)
            module.adapter = Mark(self.kind, self.inner)  # type: ignore[assignment]
        put(model, made)
        own = {name for adapter in (*there, self) for name in adapter.own(model)}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if name in own:
                parameter.requires_grad_(True)
        for name, module in model.named_modules():
            if isinstance(module, TraceableNorm):  # whose statistics stay, too
                module.frozen = f"{name}.running_mean" not in own
                module.train(module.training)

    def own(self, model: nn.Module) -> Iterator[str]:
        """Names in the state dict of what is its own: what it added and what else learns, parameters and buffers."""
        held = [f"{name}." for name, module in placed(model).items() if _kind(module) == self.kind]
        for name in model.state_dict():
            added = any(name.startswith(place) and self.owns(name.removeprefix(place)) for place in held)
            if added or matched(before(model, name), self.also):
                yield name

    def owns(self, part: str) -> bool:
        """Whether a parameter or buffer of one of its modules, by its name in there, is its own."""
        return part.split(".")[0] in self.adds

    def chosen(self, model: nn.Module) -> dict[str, Any]:
        """The layers that ``targets`` name.

        Raises:
            ValueError: for a pattern that names none, or one that is adapted already.
        """
        held = placed(model)
        outside = {
            name: module
            for name, module in model.named_modules()
            if name and not any(name.startswith(f"{place}.") for place in held)
        }
        if not self.targets and held:
            others = ", ".join(sorted({str(_kind(module)) for module in held.values()}))
            raise ValueError(f"the model is adapted by {others}: say by targets which further layers {self.kind} takes")
        plain = self.fits(nn.Linear(1, 1, device="meta"))
        masked = {name for name, m in outside.items() if plain and isinstance(m, nn.Linear) and is_parametrized(m)}
        able = [name for name, module in outside.items() if self.fits(module) or name in held or name in masked]
        wanted = [name for pattern in self.targets for name in self._matching(model, pattern, able)]
        last, tied = outputs(model), tied_layers(model)
        wanted = wanted or [name for name in able if outside[name] not in last]
        if not wanted:
            raise ValueError(f"{self.kind}: {type(model).__name__} has no layer that it can be put on{_instead(model)}")
        for name in wanted:
            if name in masked:
                raise ValueError(
                    f"{name} is masked, rounded or noisy, and {self.kind} takes plain weights: of masked ones perp "
                    "keeps zeros, and zoo.settle(model) makes them plain"
                )
            if name in held:
                raise ValueError(f"{name} is adapted by {_kind(held[name])} already: a layer has one adapter")
            if name in tied:
                raise ValueError(f"{name} shares its weight with another layer, which {self.kind} would part")
        return {name: outside[name] for name in wanted}

    def _matching(self, model: nn.Module, pattern: str, names: Sequence[str]) -> list[str]:
        if found := [name for name in names if fnmatchcase(name, pattern)]:
            return found
        close = nearest(pattern, names) or ("" if names else _instead(model))
        raise ValueError(f"targets: {pattern!r} names no layer that {self.kind} can be put on{close}")


def adapt(model: Model, method: str | Adapter, **options: Any) -> Model:
    """Prepare a model for tuning of few parameters, in place: all others are frozen, and no output changes yet.

    >>> zoo.adapt(model, "paca", rank=8)
    >>> ...  # train what requires a gradient
    >>> zoo.save_adapter(model, "mine")  # a small folder
    >>> zoo.create_model(name, pretrained=True, adapter="mine")
    >>> zoo.merge_adapter(model)  # a plain model of the same outputs

    A model may have several adapters on different layers. ``zoo.save_model`` saves the adapted model whole.

    Args:
        model: of ``create_model``, or any module.
        method: a name of ``zoo.adapt.ADAPTERS``, or an adapter.
        options: fields of the method; for all of them ``targets`` and ``also``, see ``Adapter``.

    Returns:
        The model.

    Raises:
        ValueError: for an unknown method or option, layers that are not there or adapted already, or methods that
            exclude each other; the model is as it was then.
    """
    if isinstance(method, Adapter) and options:
        raise ValueError(f"options go with a method's name, got {method} and {options}")
    apply(model, method if isinstance(method, Adapter) else as_adapter({"kind": method, **options}))
    return model


def as_adapter(described: Any) -> Adapter:
    """The adapter that {"kind": ..., field: value, ...} describes.

    Raises:
        ValueError: for a kind that is no adapter, or fields that it does not have.
    """
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind not in ADAPTERS:
        close = nearest(kind, ADAPTERS) if isinstance(kind, str) else ""
        raise ValueError(
            f'an adapter is described as {{"kind": name, field: value, ...}}, got {described!r}{close}; adapters: '
            f"{', '.join(sorted(ADAPTERS))}"
        )
    found = as_change(described)
    assert isinstance(found, Adapter)
    return found


def merge_adapter(model: Model, into: str | None = None) -> Model:
    """Take the adapters out of a model, in place, and leave what they learnt in its weights; every parameter learns
    again. The merged layers are made beside the others, and put in their place when all are there.

    Args:
        model: with adapters.
        into: what compressed layers with low ranks beside them (``lora``) become, whose codes cannot take these up:
            "float", layers of numbers, larger and of the same outputs up to rounding; "nearest", records of the same
            format that are nearest to the sum, with an error of rounding.

    Raises:
        ValueError: for a model without adapters, with one that cannot become a part of its weights, or with low ranks
            beside compressed layers and no ``into``, or one that a layer does not allow.
    """
    if into not in (None, *INTO):
        raise ValueError(f"into must be one of {', '.join(INTO)} or None, got {into!r}")
    there = {adapter.kind: adapter for adapter in adapters_of(model)}
    if not there:
        raise ValueError(f"{type(model).__name__} has no adapter to merge")
    if fixed := [kind for kind, adapter in there.items() if not adapter.mergeable]:
        raise ValueError(f"{', '.join(fixed)} cannot be merged: save the model with it, by zoo.save_model")
    if into is None and (beside := [kind for kind, adapter in there.items() if not adapter.merges(model)]):
        raise ValueError(
            f"{', '.join(beside)} lies beside compressed layers, whose codes cannot take it up: into='float' makes "
            "layers of numbers of them, into='nearest' rounds the sums to records as they are now, and zoo.save_model "
            "keeps the model with it as it is"
        )
    with undone_on_failure(model):
        made = {
            name: there[str(_kind(module))].merged(module, into).train(module.training)
            for name, module in placed(model).items()
        }
        put(model, made)
    model.changes = tuple(change for change in changes_of(model) if not isinstance(change, Adapter))  # type: ignore[assignment]
    packed = {id(p) for module in model.modules() if isinstance(module, Packed) for p in module.parameters()}
    for parameter in model.parameters():
        learns = parameter.is_floating_point() or parameter.is_complex()
        parameter.requires_grad_(learns and id(parameter) not in packed)
    for module in model.modules():
        if isinstance(module, TraceableNorm):
            module.frozen = False
    return model


def adapters_of(model: nn.Module) -> tuple[Adapter, ...]:
    """Those that a model has, the first one first."""
    return tuple(change for change in changes_of(model) if isinstance(change, Adapter))


def outputs(model: nn.Module) -> list[nn.Module]:
    """The layers that make the outputs of a model, and of the models that are parts of it."""
    named = dict(model.named_modules(remove_duplicate=False))
    found = []
    for place, part in named.items():
        if part is model or dataclasses.is_dataclass(getattr(part, "config", None)):
            names = {"head", str(getattr(part, "classifier", "head"))}
            found += [named[path] for name in names if (path := f"{place}.{name}".lstrip(".")) in named]
    return found


def tied_layers(model: nn.Module) -> set[str]:
    """Names of the layers whose weight is another layer's too."""
    places: dict[int, set[str]] = {}
    owners = dict(model.named_modules(remove_duplicate=False))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module, _, _ = name.rpartition(".")
        if isinstance(owners[module], (Record, SparseMatrix)):  # stands where the layer's weight was
            module, _, _ = module.rpartition(".")
        places.setdefault(id(parameter), set()).add(module)
    return {name for held in places.values() if len({id(owners[name]) for name in held}) > 1 for name in held}


def _instead(model: nn.Module) -> str:
    """What a compressed model can have."""
    return f": its weights are compressed. {WITH_RECORDS}" if records(model) else ""


def _kind(module: nn.Module) -> str | None:
    mark = mark_of(module)
    return None if mark is None else mark.kind

"""Every model by name: what it is, which paper it is from, how to configure it."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.checkpoints import bundled
from zoo.checkpoints.index import INDEX, UNKNOWN
from zoo.checkpoints.index import tags as published_tags
from zoo.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where an architecture was published."""

    title: str
    arxiv: str
    year: int


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A registered model: ``configure()`` gives its configuration and ``model_class(config)`` the module."""

    name: str
    task: str
    family: str
    paper: Paper
    model_class: Callable[[Any], nn.Module]
    configure: Callable[[], Any]
    tags: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, WeightSet]:
        """Tag -> what is known of those weights."""
        return {tag: _weight_set(self, tag) for tag in self.tags}


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """What is known of a set of weights.

    Attributes:
        source: repository on the Hugging Face Hub, or address; None for what comes with the package or is not known.
        licence: as its page names it, or "unknown".
        tokenizer: repository of a language model's, or "bytes"; None of another model.
        data, metric: what it was trained on, and its published or measured score, where they are known.
    """

    source: str | None = None
    licence: str = UNKNOWN
    tokenizer: str | None = None
    data: str | None = None
    metric: str | None = None


def _weight_set(entry: ModelEntry, tag: str) -> WeightSet:
    if (found := INDEX.get(entry.name, {}).get(tag)) is not None:
        tokenizer = found.tokenizer_place if entry.task == "language" else None
        place = found.repo or found.url
        return WeightSet(place, found.licence, None if tokenizer is None else tokenizer[0], found.data, found.metric)
    if tag == "bundled":
        known, tokenizer = bundled.index()[entry.name], "bytes" if entry.task == "language" else None
        return WeightSet(None, "apache-2.0", tokenizer, known["data"], f"{known['metric']} {known['value']}")
    return WeightSet()


_entries: dict[str, ModelEntry] = {}


def register_model(
    model_class: Callable[[Any], nn.Module], *, task: str, family: str, paper: Paper, tags: tuple[str, ...] = ()
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Decorator: the function's name becomes a model's name, the configuration it returns the model's defaults.

    Args:
        model_class: called with the configuration, returns the module.
        task: one of TASKS.
        family: the architecture.
        paper: its publication.
        tags: names of weight sets, besides those of ``checkpoints/index.py`` and the bundled ones.

    Raises:
        ValueError: for a name already taken or an unknown task.
    """

    def register(configure: Callable[[], Any]) -> Callable[[], Any]:
        name = configure.__name__
        if name in _entries:
            raise ValueError(f"a model named {name!r} is already registered (family {_entries[name].family!r})")
        if task not in TASKS:
            raise ValueError(f"task must be one of {TASKS}, got {task!r}")
        known = (*tags, *published_tags(name), *(("bundled",) if name in bundled.index() else ()))
        _entries[name] = ModelEntry(name, task, family, paper, model_class, configure, known)
        return configure

    return register


def entries() -> dict[str, ModelEntry]:
    """All registered models, the library's own families included."""
    kinds = (
        "language", "vision", "sequence", "generative", "series", "audio", "video", "worlds", "vision_language",
        "spatial",
    )  # fmt: skip
    for kind in kinds:
        importlib.import_module(f"zoo.{kind}")
    return _entries


def lookup(name: str) -> ModelEntry:
    """The entry of a model.

    Raises:
        ValueError: for an unknown name, with the nearest known ones.
    """
    known = entries()
    if name not in known:
        raise ValueError(f"unknown model {name!r}{nearest(name, known)}; zoo.list_models() lists all {len(known)}")
    return known[name]


def list_models(
    pattern: str = "*", *, task: str | None = None, family: str | None = None, pretrained: bool | None = None
) -> list[str]:
    """Names that match the shell-style ``pattern``, in natural order (numbers inside a name count as numbers).

    Args:
        pattern: wildcards ``*``, ``?``, ``[seq]``.
        task, family: keep only these.
        pretrained: keep only models with (True) or without (False) downloadable weights.

    Raises:
        ValueError: for an unknown task or family.
    """
    known = entries()
    if task is not None and task not in TASKS:
        raise ValueError(f"unknown task {task!r}{nearest(task, TASKS)}; tasks: {list(TASKS)}")
    if family is not None and family not in list_families():
        raise ValueError(f"unknown family {family!r}{nearest(family, list_families())}; families: {list_families()}")
    found = [
        entry.name
        for entry in known.values()
        if fnmatch.fnmatchcase(entry.name, pattern)
        and task in (None, entry.task)
        and family in (None, entry.family)
        and pretrained in (None, bool(entry.tags))
    ]
    return sorted(found, key=natural_key)


def list_families() -> list[str]:
    """Names of the architectures."""
    return sorted({entry.family for entry in entries().values()}, key=natural_key)


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key under which numbers inside a name count as numbers."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def nearest(word: str, words: Any) -> str:
    """', did you mean ...?' with up to three close matches, or an empty string."""
    close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.5)
    return f", did you mean {' or '.join(repr(w) for w in close)}?" if close else ""

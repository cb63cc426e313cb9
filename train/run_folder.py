"""What a run folder says of itself: the configuration it was trained with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

NAME = "config.yaml"
KEYS = ("seed_everything", "trainer", "model", "data", "import", "ema", "nan_guard", "throughput", "checkpoint")
EVALUATED = ("seed_everything", "model", "data", "import", "ema")  # the trainer's machine may be another one now
OURS = ("zoo.", "lightning.")
PLAIN = (("default_root_dir",), ("save_dir",), ("dirpath",), ("max_time",))  # plain text to a parser
DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def has_configuration(run: Path) -> bool:
    """Whether a folder is a run's, with its configuration."""
    return (run / NAME).is_file()


def configuration(
    run: Path, recipe: Path | None = None, keys: tuple[str, ...] = KEYS, overrides: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """The configuration of a run, and where it differs from the recipe that was named.

    A run folder may come from elsewhere, so its configuration makes nothing but classes of this library, of Lightning
    and those that the recipe or an override names as well: importing others would run their code.

    Args:
        run: the folder.
        recipe: what the user believes it was trained by; None to ask the folder alone.
        keys: sections to take.
        overrides: options of the command line.

    Returns:
        YAML, and lines such as "model.init_args.lr is 0.1, not 0.3".

    Raises:
        ValueError: it is no configuration of a run, names another class, or the recipe is for another task or data.
    """
    path = run / NAME
    content = _read(path)
    known = _read(recipe) if recipe is not None else {}
    allowed = set(_classes(known))
    for name in _classes(content):
        if not name.startswith(OURS) and name not in allowed and not any(name in option for option in overrides):
            raise ValueError(
                f"{path} makes a {name}, which is no class of this library: where you trust it, name it by an option "
                f"too, or give {path} as the recipe (and for an evaluation a file of checkpoints/ as --checkpoint)"
            )
    for part in ("model", "data"):
        if not isinstance(content.get(part), dict) or not isinstance(content[part].get("init_args", {}), dict):
            raise ValueError(f"{path} is no configuration of a run: {part} must have a class_path and init_args")
        ours, theirs = (str(one[part].get("class_path")) for one in (content, known or content))
        if ours.rsplit(".", 1)[-1] != theirs.rsplit(".", 1)[-1]:
            raise ValueError(
                f"{run} was trained with {part} {ours}, {recipe} is for {theirs}: leave the recipe out, or give "
                f"a file of {run / 'checkpoints'} to use it by the recipe alone"
            )
    differing = [
        f"{name} is {value!r}, not {wanted!r}"
        for name, wanted in _leaves({part: known[part] for part in ("model", "data") if part in known})
        for value in [value_at(content, name)]
        if value != wanted and not name.endswith("class_path")
    ]
    return yaml.safe_dump({key: content[key] for key in keys if key in content}), differing


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def _classes(content: Any, place: tuple[str, ...] = ()) -> Iterator[str]:
    """Whatever a parser would import: class paths, and dotted names, or files of classes, where a class may stand."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _classes(value, (*place, str(key)))
    elif isinstance(content, list):
        for value in content:
            yield from _classes(value, place)
    elif isinstance(content, str):
        by_name = place[:1] == ("trainer",) or place[-1:] == ("task",) or len(place) == 1
        named = DOTTED.fullmatch(content) or (_is_read(content) and place[-1:] not in PLAIN)
        if "class_path" in place[-1:] or (by_name and place != ("import",) and named):
            yield content


def _is_read(text: str) -> bool:
    """Whether a parser may take what stands for a section or a class as a file that holds it, here or elsewhere."""
    try:
        return ":" in text or Path(text).is_file()
    except (OSError, ValueError):  # no path at all
        return False


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(content: Any, name: str) -> Any:
    """What nested mappings hold under a dotted name; None where there is nothing."""
    for key in name.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content

"""From a name and a tag to the files of its published weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.checkpoints import bundled, read_config, read_state_dict
from zoo.checkpoints.index import INDEX
from zoo.recognition import describe_model
from zoo.registry import ModelEntry, lookup, nearest


def prefetch(name: str) -> Path:
    """Download what ``create_model(name, pretrained=True)`` or ``create_model("hf-hub:...")`` will load, the tokenizer
    with it.

    Args:
        name: "family_size", "family_size.tag" or "hf-hub:owner/repo[@revision]".

    Returns:
        The file or folder of the weights.

    Raises:
        ValueError: for an unknown name or tag, or one without published weights.
        OSError: ``zoo.checkpoints.download.DownloadError``, when they could not be had.
    """
    from zoo.checkpoints.download import DownloadError, fetch_folder, fetch_tokenizer

    if name.startswith("hf-hub:"):
        repo, _, revision = name.removeprefix("hf-hub:").partition("@")
        folder = fetch_folder(repo, revision or None, name, config=True)
        with suppress(DownloadError):
            fetch_tokenizer(repo, revision or None, name)
        return folder
    entry, tag = entry_and_tag(name, pretrained=True)
    if tag == "bundled":
        return bundled.path(entry.name)  # type: ignore[return-value]
    path, _ = _fetch(entry, tag)
    fetch_tag_tokenizer(entry, tag)
    return path


def fetch_tag_tokenizer(entry: ModelEntry, tag: str) -> Path | None:
    """The folder of a tag's tokenizer; None where there is none, or it cannot be had: ``load_tokenizer`` tells why."""
    from zoo.checkpoints.download import DownloadError, fetch_tokenizer

    weights = INDEX[entry.name][tag]
    if entry.task == "language" and (place := weights.tokenizer_place) is not None:
        with suppress(DownloadError):
            return fetch_tokenizer(*place, f"{entry.name}.{tag}")
    return None


def entry_and_tag(name: str, pretrained: bool = False) -> tuple[ModelEntry, str]:
    """The model and the tag of "family_size.tag"; of the name alone its first tag, if weights are wanted, or ""."""
    if "/" in name or "\\" in name or name.startswith("."):
        raise ValueError(
            f"{name!r} is no model's name: write local-dir:FOLDER for a folder, hf-hub:owner/repo for the Hub"
        )
    base, _, tag = name.partition(".")
    entry = lookup(base)
    if tag and tag not in entry.tags:
        raise ValueError(f"{base} has no weights {tag!r}{nearest(tag, entry.tags)}; its tags: {list(entry.tags)}")
    if pretrained and not entry.tags:
        raise ValueError(
            f"there are no published weights of {base}: use checkpoint_path=FILE, or train it; "
            "zoo.list_models(pretrained=True) lists the models that have some"
        )
    return entry, tag or (entry.tags[0] if pretrained else "")


def _fetch(entry: ModelEntry, tag: str) -> tuple[Path, Path | None]:
    """The files of a tag: weights, and the config.json beside them."""
    from zoo.checkpoints.download import fetch, fetch_config

    if tag not in INDEX.get(entry.name, {}):
        raise ValueError(f"nothing says where the weights {entry.name}.{tag} are: load them by checkpoint_path=FILE")
    weights, name = INDEX[entry.name][tag], f"{entry.name}.{tag}"
    described = fetch_config(weights, name)
    return fetch(weights, name), described


def fetched(entry: ModelEntry, tag: str) -> tuple[dict[str, Tensor], Any]:
    """The weights of a tag, and the configuration that the config.json beside them describes, or the name's."""
    path, described = _fetch(entry, tag)
    weights, config = read_state_dict(path, INDEX[entry.name][tag].ema), entry.configure()
    if described is not None:
        try:
            config = describe_model(read_config(described.parent), weights, str(described.parent), entry)[1]
        except ValueError:
            if INDEX[entry.name][tag].in_layout:
                raise  # else it is another library's, and of no concern to a file of the authors' own
    return weights, config

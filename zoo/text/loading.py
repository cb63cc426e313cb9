"""From a name or a folder to the tokenizer of its model."""

from __future__ import annotations

from pathlib import Path

from zoo.checkpoints import read_config
from zoo.checkpoints.index import INDEX
from zoo.checkpoints.io import CONFIG
from zoo.fetching import entry_and_tag
from zoo.text.files import TOKENIZER, FileTokenizer
from zoo.text.tokenizer import ByteTokenizer, Tokenizer

BYTES = 256


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer that belongs to a model.

    Args:
        name: a folder, or "local-dir:FOLDER", with a tokenizer.json; "hf-hub:owner/repo[@revision]", whose files are
            downloaded once; or a model's name, "family_size" or "family_size.tag". A model of 256 tokens without
            files of a tokenizer reads bytes.

    Raises:
        ValueError: for an unknown name, a model without a tokenizer (the error says what to do), or damaged files.
        FileNotFoundError: for a folder that is not there.
        OSError: ``zoo.checkpoints.download.DownloadError``, when the files could not be had.
    """
    kind, _, place = str(name).partition(":")
    if isinstance(name, Path) or kind == "local-dir" or Path(name).is_dir():
        return _of_folder(Path(place if kind == "local-dir" and isinstance(name, str) else name), str(name))
    if kind == "hf-hub":
        repo, _, revision = place.partition("@")
        return _of_hub(repo, revision or None, str(name))
    return _of_name(str(name))


def _of_folder(folder: Path, source: str) -> Tokenizer:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one with a {TOKENIZER}, or a model's name")
    if (folder / TOKENIZER).exists():
        return FileTokenizer(folder, source)
    content = read_config(folder) if (folder / CONFIG).exists() else {}
    fields = content.get("config", content)
    if isinstance(fields, dict):
        fields = fields.get("language_options", fields)  # of a model of images and texts
    if isinstance(fields, dict) and fields.get("vocab_size") == BYTES:
        return ByteTokenizer(source)
    raise ValueError(
        f"{source} has no {TOKENIZER}: put the model's own there, load that of another folder or repository, or have "
        "transformers make one of other files: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def _of_hub(repo: str, revision: str | None, name: str) -> Tokenizer:
    from zoo.checkpoints.download import fetch_tokenizer

    return _of_folder(fetch_tokenizer(repo, revision, name), name)


def _of_name(name: str) -> Tokenizer:
    entry, tag = entry_and_tag(name)
    tag = tag or next(iter(entry.tags), "")
    weights = INDEX.get(entry.name, {}).get(tag)
    if entry.task == "language" and weights is not None and (place := weights.tokenizer_place) is not None:
        return _of_hub(*place, name)
    config = entry.configure()
    if getattr(getattr(config, "language_config", config), "vocab_size", None) == BYTES:
        return ByteTokenizer(name)
    raise ValueError(
        f"nothing says which tokenizer belongs to {name}: give zoo.load_tokenizer the folder, or the "
        "hf-hub:owner/repo, of the one that it was trained with"
    )

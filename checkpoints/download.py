"""Files from the Hugging Face Hub or an address: fetched once, verified, and never half there.

The Hub is reached by huggingface_hub, with its cache and variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN).
Files of an address go to ``$ZOO_CACHE/weights`` (``~/.cache/zoo/weights``). The sha256 of every file is known from the
index or recorded at its first download, in ``weights.json`` beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from zoo.checkpoints.connection import endpoint, transport_errors, unreachable, without_connection
from zoo.checkpoints.index import Weights, check_inside
from zoo.checkpoints.io import CONFIG, INDICES, SINGLE
from zoo.checkpoints.json_files import read_json

ATTEMPTS = 5  # connections that may break before a download gives up; each goes on where the last one ended
BLOCK = 1 << 20  # bytes
TOKENIZER = "tokenizer.json"
BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


class DownloadError(OSError):
    """A file that could not be had; the message names it, the reason and the way out. Nothing half-made is left."""


def fetch(weights: Weights, name: str) -> Path:
    """The file or folder of a published set of weights, downloaded where it is not yet here.

    Args:
        name: of the model and tag, for messages.

    Raises:
        DownloadError: offline and not here, refused, gone, damaged, or no room for it.
    """
    if weights.url is not None:
        return _fetch_url(weights, name)
    assert weights.repo is not None
    if weights.file is None:
        return fetch_folder(weights.repo, weights.revision, name)
    path = _hub_file(weights.repo, weights.file, weights.revision, name)
    return _verified(path, f"{weights.repo}/{weights.file}", weights, name)


def fetch_config(weights: Weights, name: str) -> Path | None:
    """The config.json beside a published set of weights, None where there is none.

    Raises:
        DownloadError: where the weights cannot be understood without it.
    """
    if weights.repo is None:
        return None
    path = _hub_file(weights.repo, CONFIG, weights.revision, name, optional=True)
    if path is None and weights.in_layout and not weights.fields:
        unknown = f"has no {CONFIG}, without which its tensors can mean anything; load a file that you know by"
        raise _lacking(weights.repo, name, f"no {CONFIG}", f"{unknown} checkpoint_path")
    return path


def fetch_folder(repo: str, revision: str | None = None, name: str | None = None, config: bool = False) -> Path:
    """The folder with a repository's weights, whole or in shards, and with ``config`` its config.json.

    Raises:
        DownloadError: as for ``fetch``, and for a repository without weights.
        ValueError: for a shard index that is no JSON or leads out of the folder.
    """
    name, optional = name or f"hf-hub:{repo}", {"optional": True}
    found = [_hub_file(repo, CONFIG, revision, name)] if config else []
    for whole, index in zip(SINGLE, INDICES, strict=True):
        path = _hub_file(repo, whole, revision, name, **optional)
        if path is None and (listing := _hub_file(repo, index, revision, name, **optional)) is not None:
            found.append(listing)
            for shard in _shards(listing):
                path = _hub_file(repo, shard, revision, name)
                _verified(path, f"{repo}/{shard}", Weights(repo=repo, revision=revision), name)
        elif path is not None:
            _verified(path, f"{repo}/{whole}", Weights(repo=repo, revision=revision), name)
        if path is not None:
            return Path(path).parent
    raise _lacking(repo, name, "no weights", f"has none of {', '.join((*SINGLE, *INDICES))}")


def fetch_tokenizer(repo: str, revision: str | None = None, name: str | None = None) -> Path:
    """The folder with a repository's tokenizer, where it has one, and its config.json, which tells where it has none.

    Raises:
        DownloadError: as for ``fetch``, and for a repository with neither.
    """
    name, optional = name or f"hf-hub:{repo}", {"optional": True}
    tokenizer, config = (_hub_file(repo, file, revision, name, **optional) for file in (TOKENIZER, CONFIG))
    if tokenizer is not None:
        for file in BESIDE_TOKENIZER:
            _hub_file(repo, file, revision, name, **optional)
    if tokenizer is None and config is None:
        raise _lacking(repo, name, f"no {TOKENIZER}", f"has neither {TOKENIZER} nor {CONFIG}")
    return Path(tokenizer or config).parent


def cache_folder() -> Path:
    """Folder of the files of addresses and of the record."""
    root = os.environ.get("ZOO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"
    return Path(root) / "weights"


def record() -> dict[str, dict[str, Any]]:
    """What was downloaded: origin -> path, sha256, size, time of change and name."""
    try:
        return json.loads((cache_folder() / "weights.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise DownloadError(
            f"{cache_folder() / 'weights.json'} is not valid JSON: {error}; remove it, hashes are then recorded anew"
        ) from error


def damaged() -> list[str]:
    """Origins whose recorded file is not there any more or has another sha256; reads every file."""
    return [
        origin
        for origin, known in record().items()
        if not Path(known["path"]).exists() or _sha256(Path(known["path"])) != known["sha256"]
    ]


def forget(origin: str) -> None:
    """Remove a downloaded file and what is recorded of it."""
    with _locked("weights.json"):
        known = record()
        entry = known.pop(origin)
        _remove(Path(entry["path"]))
        _write(cache_folder() / "weights.json", (json.dumps(known, indent=1) + "\n").encode())


def _lacking(repo: str, name: str, what: str, but: str) -> DownloadError:
    """What is not here of a repository: because there is no connection, or because the repository lacks it."""
    if (reason := unreachable()) is None:
        return DownloadError(f"{name}: the repository {repo} {but}")
    return DownloadError(f"{name}: {what} of {repo} here, and {reason}; {without_connection(repo, name)}")


def _hub_file(repo: str, file: str, revision: str | None, name: str, optional: bool = False) -> Any:
    """Path of a repository's file; None for an ``optional`` one that is not there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{name}: {file} of {repo}" + (f" at {revision}" if revision else "")
    reason = unreachable()
    try:
        path = hf_hub_download(repo, file, revision=revision, endpoint=endpoint(), local_files_only=reason is not None)
        return Path(path)
    except GatedRepoError as error:
        raise DownloadError(
            f"{what} is gated: accept its terms on the Hub, then set HF_TOKEN or run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{what}: there is no such repository, or it is private: check the name, or set HF_TOKEN to a token that "
            "may read it"
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{what}: there is no such revision (any more): leave it out or name another") from error
    except LocalEntryNotFoundError as error:
        if optional:
            return None
        raise DownloadError(
            f"{what} is not here, and {reason or _reason(error)}; {without_connection(repo, name)}"
        ) from error
    except EntryNotFoundError as error:
        if optional:
            return None
        raise DownloadError(f"{what}: there is no such file; the repository has changed or holds no model") from error
    except HFValidationError as error:
        raise DownloadError(f"{what}: {error}") from error
    except HfHubHTTPError as error:
        raise DownloadError(f"{what}: the server refused ({error}); try again later, or set HF_TOKEN") from error
    except (OSError, *transport_errors()) as error:
        raise DownloadError(f"{what}: {error}; what arrived is kept for the next try, if there is room") from error


def _fetch_url(weights: Weights, name: str) -> Path:
    """A file of an address, resumed where an earlier try ended."""
    assert weights.url is not None
    path = cache_folder() / urlsplit(weights.url).path.rsplit("/", 1)[1]
    with _locked(path.name):
        if not path.exists():
            if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
                raise DownloadError(
                    f"{name}: {weights.url} is not here, and HF_HUB_OFFLINE is set; run `zoo download {name}` where "
                    f"there is a connection and copy {path} to the same place here, or load what you have by "
                    "checkpoint_path=FILE"
                )
            _download(weights.url, path, name)
        return _verified(path, weights.url, weights, name)


def _download(url: str, path: Path, name: str) -> None:
    part = path.with_name(path.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            _continue(url, part, name)
            os.replace(part, path)
            return
        except HTTPError as error:
            if error.code == 416:  # nothing lies beyond what is here already: it was another file
                part.unlink(missing_ok=True)
            if error.code not in (416, 429, 500, 502, 503, 504) or attempt == ATTEMPTS - 1:
                raise DownloadError(f"{name}: {url} answered {error.code} {error.reason}; try again later") from error
        except (URLError, ConnectionError, TimeoutError) as error:
            if attempt == ATTEMPTS - 1:
                raise DownloadError(
                    f"{name}: {url}: {_reason(error)}, {ATTEMPTS} times; what arrived is kept, try again later"
                ) from error
        except OSError as error:
            raise DownloadError(f"{name}: {path} cannot be written: {error}; make room, or set ZOO_CACHE") from error
        time.sleep(min(0.1 * 2**attempt, 5))


def _continue(url: str, part: Path, name: str) -> None:
    """Append to ``part`` what is missing; ConnectionError when the body ends early."""
    from rich.progress import wrap_file

    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urlopen(request, timeout=30) as response:
        if have and response.status != 206:
            have = 0  # the server sends all of it
        expected = response.headers.get("Content-Length")
        total = None if expected is None else int(expected)
        with part.open("ab" if have else "wb") as file:
            source: Any = wrap_file(response, total or 0, description=name, transient=True) if total else response
            got = 0
            with source as body:
                while block := body.read(BLOCK):
                    file.write(block)
                    got += len(block)
    if total is not None and got != total:
        raise ConnectionError(f"the connection ended after {have + got} of {have + total} bytes")


def _verified(path: Path, origin: str, weights: Weights, name: str) -> Path:
    """The path, once its sha256 is the one of the index, or else of the record; a file that differs is removed."""
    revised = f"{origin}@{weights.revision}" if weights.revision else origin
    stat, known = path.stat(), record().get(revised)
    seen = known is not None and (known["size"], known["changed"]) == (stat.st_size, stat.st_mtime_ns)
    if seen and known is not None and weights.sha256 in (None, known["sha256"]):
        return path
    found = _sha256(path)
    wanted = weights.sha256 or weights.sha256_prefix or (known or {}).get("sha256") or found
    if not found.startswith(wanted):
        _remove(path)
        raise DownloadError(
            f"{name}: {origin} has the sha256 {found}, expected {wanted}; the file was removed: download it again, and "
            "if that does not help it was changed where it comes from (`zoo cache prune` forgets what was recorded)"
        )
    with _locked("weights.json"):
        entry = {
            "name": name, "path": str(path), "sha256": found, "size": stat.st_size, "changed": stat.st_mtime_ns,
        }  # fmt: skip
        everything = record() | {revised: entry}
        _write(cache_folder() / "weights.json", (json.dumps(everything, indent=1) + "\n").encode())
    return path


def _shards(listing: Path) -> list[str]:
    try:
        names = sorted(set(read_json(listing)["weight_map"].values()))
    except (LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{listing} is no index of shards: {error!r}; download it again") from error
    for shard in names:
        check_inside(shard)
    return names


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    """The file, and where it is a link of the Hub's cache also what it leads to."""
    real = path.resolve()
    path.unlink(missing_ok=True)
    real.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_bytes(content)
    os.replace(new, path)


@contextmanager
def _locked(what: str) -> Iterator[None]:
    """One process at a time."""
    from filelock import FileLock

    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / f"{what}.lock"):
        yield


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

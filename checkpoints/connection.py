"""Whether the Hub can be reached, and what to say where it cannot."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

TIMEOUT = 5  # seconds for the first connection


def endpoint() -> str:
    """Address of the Hub: HF_ENDPOINT, or huggingface.co."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def unreachable() -> str | None:
    """Why the Hub cannot be reached, known at once; None where it can, or where only trying tells (a proxy).

    Without it huggingface_hub tries again for half a minute, a line a try.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    place = urlsplit(endpoint())
    if place.hostname is None or place.scheme in getproxies():
        return None
    try:
        port = place.port or (80 if place.scheme == "http" else 443)
        socket.create_connection((place.hostname, port), timeout=TIMEOUT).close()
    except OSError as error:
        return f"{place.hostname} cannot be reached: {error.strerror or error}"
    return None


def without_connection(repo: str, name: str) -> str:
    """What to do about the files of a repository where there is no connection."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    mine = "local-dir:FOLDER" if name.startswith("hf-hub:") else "checkpoint_path=FILE"
    return (
        f"run `zoo download {name}` where there is a connection and copy {cache} to the same place here, or load what "
        f"you have by {mine}; HF_ENDPOINT names a mirror, and HF_HUB_OFFLINE=1 looks into the cache alone"
    )


def transport_errors() -> tuple[type[Exception], ...]:
    """What broken connections raise in the client that the installed huggingface_hub uses, and are no OSErrors."""
    return tuple(sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules)

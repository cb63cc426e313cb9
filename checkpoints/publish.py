"""Folders of models onto the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from zoo.checkpoints.connection import endpoint, transport_errors, unreachable
from zoo.checkpoints.io import CONFIG, SINGLE, read_config, whole
from zoo.checkpoints.write import CARD, COMPANIONS, weights_in


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder written by ``zoo.save_model``: config.json, weights, model card, and a tokenizer beside them.

    The repository is made if need be. Needs a token that may write: HF_TOKEN, or `hf auth login`.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: when the folder lacks a config.json, weights or a card.
        OSError: when the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    read_config(folder)
    if whole(folder) != folder:
        raise FileNotFoundError(f"{folder} lacks a {CONFIG}, as a save into it was broken off: save it again")
    weights = sorted(weights_in(folder))
    if not weights or not (folder / CARD).exists():
        raise FileNotFoundError(f"{folder} lacks {CARD if weights else ' or '.join(SINGLE)}: save it by zoo.save_model")
    if (reason := unreachable()) is not None:
        raise OSError(f"{repo}: nothing was published, {reason}; HF_ENDPOINT names a mirror")
    api = HfApi(endpoint=endpoint())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[CONFIG, CARD, *COMPANIONS, *weights],
            commit_message="Upload model",
        )
    except HFValidationError as error:
        raise ValueError(str(error)) from error
    except HfHubHTTPError as error:
        raise OSError(
            f"{repo}: the Hub refused ({error}): set HF_TOKEN to a token that may write there, or run `hf auth login`"
        ) from error
    except transport_errors() as error:
        raise OSError(f"{repo}: the connection broke: {error}; try again later") from error
    return done.commit_url

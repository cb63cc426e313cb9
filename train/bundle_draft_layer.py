"""The draft layers that come with the package, of a run of their recipe.

    zoo train docs_transformer_longspec --output RUN
    python -m zoo.train.bundle_draft_layer RUN docs_transformer_longspec

The entry of ``checkpoints/bundled/draft_layers/index.json``, under the name of the model whose bundled weights the
layer was trained on, holds the fields it is made with, sha256, size and recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from zoo.changes import read_changes
from zoo.checkpoints import bundled, read_config, read_state_dict
from zoo.decoding import AddedDraftLayer

PREFIX = "draft_layer."


def bundle(run: Path, recipe: str) -> None:
    """Write the weights and the entry of the index."""
    folder, content = bundled.FOLDER / "draft_layers", read_config(run / "model")
    fields = next(vars(change) for change in read_changes(content) if isinstance(change, AddedDraftLayer))
    weights = {k.removeprefix(PREFIX): t for k, t in read_state_dict(run / "model").items() if k.startswith(PREFIX)}
    packed = save({key: tensor.contiguous() for key, tensor in bundled.pack(weights).items()})
    name = content["architecture"]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(packed)
    index = folder / "index.json"
    known: dict[str, Any] = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
    known[name] = {
        "file": f"{name}.safetensors", "sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed),
        "fields": fields, "recipe": recipe,
    }  # fmt: skip
    index.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("zoo.train.bundle_draft_layer", description="Pack a trained draft layer.")
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("recipe", help="that it was trained by")
    options = parser.parse_args(arguments)
    bundle(options.run, options.recipe)


if __name__ == "__main__":
    main()

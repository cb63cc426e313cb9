"""What world models imagine, said and drawn: `zoo predict` on what was played, `zoo generate` in an environment."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.output import PICTURES, check_suffix, say, show


def foretell(model: Any, known: Namespace) -> int:
    """What follows the first frames of files, with the actions of the rest, beside what came."""
    from zoo.worlds import read_played

    check_suffix(known.output, PICTURES, "what is imagined")
    if known.output is not None and len(known.files) > 1:
        raise UsageError(f"--output is of one file, got {len(known.files)}")
    for path in known.files:
        _imagine(model, checked(read_played, path, model), known.context, 0, known.output, str(path))
    return 0


def play_on(model: Any, known: Namespace) -> int:
    """An episode of the model's environment, played by its agent, beside what it imagines after the first frames."""
    from zoo.worlds import one_episode

    context = 8
    played = checked(one_episode, model.eval(), context + known.images, known.seed)
    _imagine(model, played, context, known.seed, known.output, model.config.environment)
    return 0


def _imagine(model: Any, played: Any, context: int, seed: int, output: Path | None, title: str) -> None:
    import torch
    from rich.table import Table

    from zoo.worlds import beside, rollout

    generator = torch.Generator().manual_seed(seed)
    frames, found = checked(rollout, model.eval(), played, context, generator)
    came = played.frames[context:].to(frames) / 255
    errors = (frames - came).square().flatten(1).mean(1)
    table = Table("frame", "action", "reward", "ends, %", "squared error", title=title, title_justify="left")
    rows = zip(
        found.actions[0].tolist(), found.rewards[0].tolist(), found.ends[0].tolist(), errors.tolist(), strict=True
    )
    for index, (action, reward, end, error) in enumerate(rows):
        table.add_row(str(context + index), str(action), f"{reward:.2f}", f"{100 * end:.1f}", f"{error:.5f}")
    show(table)
    if output is not None:
        checked(beside(played, frames).save, output)
        say(f"written: {output}, what came above what was imagined")

"""What ways have to learn before they are measured: a file of weights a lesson, and the command that writes it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.checkpoints import bundled, read_state_dict

FOLDER = Path(__file__).resolve().parent / "weights"
Teach = Callable[[str, "int | None", Path], tuple[Mapping[str, Tensor], str]]
"""Of a lesson, its steps, fewer than it takes where they are given, and the folder of the files: what was learnt, and
what else is said of it."""


def keep(learnt: Mapping[str, Tensor], file: Path) -> None:
    """Write a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    packed = bundled.pack({name: tensor.detach() for name, tensor in learnt.items()})
    save_file({name: tensor.contiguous() for name, tensor in packed.items()}, file)


def fill(model: nn.Module, learnt: Collection[str], file: Path) -> None:
    """Read one into a model.

    Args:
        model: gets what the file holds.
        learnt: names of all that the lesson changes.
        file: of ``keep``.

    Raises:
        ValueError: for a file of something else.
    """
    found = bundled.unpack(read_state_dict(file))
    if set(found) != set(learnt):
        raise ValueError(
            f"the weights of a lesson must be those of {sorted(learnt)}, got {sorted(found)} in {file}: train it anew"
        )
    model.load_state_dict(found, strict=False)


def command(name: str, subject: str, lessons: Collection[str], teach: Teach, arguments: Sequence[str] | None) -> None:
    """Teach what is asked for, all lessons where none is, and write ``NAME_LESSON.safetensors`` of each.

    Args:
        name: of the module, without its ``_training``, and of the files with an s.
        subject: of `zoo bench`, which reads them.
        lessons: their names, in order.
        teach: one of them.
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(
        f"zoo.benchmarks.{name}_training", description=f"Train what zoo bench {subject} reads"
    )
    parser.add_argument("names", nargs="*", default=[*lessons], metavar="LESSON", help=f"of {', '.join(lessons)}")
    parser.add_argument("--steps", type=int, help="fewer than they take")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the files")
    options = parser.parse_args(arguments)
    for lesson in options.names:
        begin = time.process_time()
        learnt, said = teach(lesson, options.steps, options.output)
        keep(learnt, options.output / f"{name}s_{lesson}.safetensors")
        parser._print_message(f"{lesson}: {time.process_time() - begin:.0f} s{said}\n")

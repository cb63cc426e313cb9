"""What the bundled miniatures make, drawn by the commands that a user would type.

    zoo bench gallery                                 # writes benchmarks/results/gallery.{json,md} and gallery/*.png
    zoo bench gallery --models "*dit*" --no-save

Models that draw are asked for images of all their classes; the others read files made of the test data of their
recipes, which no training has seen. The page of a family shows its pictures.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo.benchmarks.common import RESULTS, command_line, each, publish
from zoo.registry import lookup

FOLDER = "gallery"


class Drawn(NamedTuple):
    """A picture.

    Attributes:
        shows: what is on it.
        verb: of the command.
        arguments: after the model's name.
        files: writes what the command reads into a folder, and returns what is typed for it, names of those files.
    """

    shows: str
    verb: str
    arguments: Sequence[str] = ()
    files: Callable[[Path], list[str]] = lambda folder: []

    def command(self, model: str, files: Sequence[str], output: str) -> list[str]:
        """As it is typed."""
        return ["zoo", self.verb, model, *files, *self.arguments, "--output", output]

    def typed(self, model: str, files: Sequence[str], output: str) -> str:
        """The same as one line."""
        return shlex.join(self.command(model, files, output))


def images(folder: Path) -> list[str]:
    """Eight test digits."""
    from PIL import Image

    from zoo.train.data import DigitsDataModule
    from zoo.train.data.digits import MEAN, STD

    data = DigitsDataModule()
    data.setup("test")
    pixels, _ = data.sources["test"].fetch(torch.arange(8), 0)
    names = [f"digit{index}.png" for index in range(8)]
    for name, one in zip(names, (255 * (pixels[:, 0] * STD + MEAN)).round().to(torch.uint8), strict=True):
        Image.fromarray(one.numpy()).save(folder / name)
    return names


def series(folder: Path) -> list[str]:
    """One with anomalies."""
    import numpy as np

    from zoo.train.data import SeriesDataModule

    np.save(folder / "series.npy", SeriesDataModule().series(seed=1, anomalies=True)[0].numpy())
    return ["series.npy"]


def sound(folder: Path) -> list[str]:
    """A voice and noise, as two microphones hear them."""
    from zoo.audio import write_wave
    from zoo.train.data import MicrophonesDataModule

    data = MicrophonesDataModule(samples=8000)
    data.setup("test")
    heard = data.sources["test"].fetch(torch.arange(1), 0)[0][0]
    write_wave(folder / "heard.wav", heard / heard.abs().max(), data.sample_rate)
    return ["heard.wav"]


def clip(folder: Path) -> list[str]:
    """A generated figure that others hide for a while."""
    from PIL import Image

    from zoo.train.data import ClipsDataModule

    data = ClipsDataModule()
    data.setup("test")
    frames = data.sources["test"].fetch(torch.tensor([1]), 0)[0][0]
    first, *rest = (Image.fromarray(frame.numpy()) for frame in (255 * frames).byte().permute(0, 2, 3, 1))
    first.save(folder / "clip.gif", save_all=True, append_images=rest)
    return ["clip.gif"]


def cloud(folder: Path) -> list[str]:
    """Points of generated shapes."""
    import numpy as np

    from zoo.train.data import CloudsDataModule

    data = CloudsDataModule()
    data.setup("test")
    np.save(folder / "cloud.npy", data.sources["test"].fetch(torch.tensor([0]), 0)[0][0].numpy())
    return ["cloud.npy"]


def views(folder: Path) -> list[str]:
    """What four cameras see of one scene."""
    from PIL import Image

    from zoo.train.data import CamerasDataModule

    data = CamerasDataModule()
    data.setup("test")
    names = []
    for camera, view in enumerate(data.sources["test"].fetch(torch.tensor([0]), 0)[0][0]):
        names.append(f"view{camera}.png")
        Image.fromarray((255 * view.clamp(0, 1)).byte().movedim(0, -1).numpy()).save(folder / names[-1])
    return names


def figure_clip(folder: Path) -> list[str]:
    """A generated figure that moves."""
    from PIL import Image

    from zoo.train.data import MovingFiguresDataModule, figures

    data = MovingFiguresDataModule()
    data.setup("test")
    frames = data.sources["test"].fetch(torch.tensor([1]), 0)[0][0, 0] * figures.STD + figures.MEAN
    first, *rest = (Image.fromarray(frame.numpy()) for frame in (255 * frames.clamp(0, 1)).round().byte())
    first.save(folder / "figure.gif", save_all=True, append_images=rest)
    return ["figure.gif"]


def captioned(folder: Path) -> list[str]:
    """Four test pictures of digits and shapes."""
    from PIL import Image

    from zoo.train.data.pictures import MEAN, STD

    source, names = _pictures(), [f"picture{index}.png" for index in range(4)]
    pixels = (255 * (source.images(torch.arange(4))[:, 0] * STD + MEAN)).clamp(0, 255).round().byte()
    for name, one in zip(names, pixels, strict=True):
        Image.fromarray(one.numpy()).save(folder / name)
    return names


def with_texts(folder: Path) -> list[str]:
    """These, and the captions of all of them."""
    captions = [scene.caption() for scene in _pictures().scenes(torch.arange(4))]
    return captioned(folder) + [word for caption in captions for word in ("--text", caption)]


def _pictures() -> Any:
    from zoo.train.data import PicturesDataModule

    data = PicturesDataModule(test_samples=4)
    data.setup("test")
    return data.sources["test"]


def volume(folder: Path) -> list[str]:
    """A noisy ellipsoid with a core, and a box."""
    import numpy as np

    from zoo.train.data import EllipsoidsDataModule

    data = EllipsoidsDataModule()
    data.setup("test")
    np.save(folder / "volume.npy", data.sources["test"].fetch(torch.tensor([0]), 0)[0][0].numpy())
    return ["volume.npy"]


PICTURES = {
    "next_scale_nano": Drawn("digits said scale by scale", "generate", ("--images", "20", "--guidance", "2")),
    "next_scale_shapes_nano": Drawn("figures said scale by scale", "generate", ("--images", "20", "--guidance", "2")),
    "dit_nano": Drawn("digits made of noise", "generate", ("--images", "20", "--guidance", "1")),
    "unet_nano": Drawn("digits made of noise", "generate", ("--images", "20", "--guidance", "1")),
    "wetok_nano": Drawn("test digits above what their codes decode to", "predict", files=images),
    "wetok_nano_generative": Drawn("test digits above three draws of them by their codes", "predict", files=images),
    "video_dit_nano": Drawn("clips of moving figures, made of noise", "generate", ("--images", "5", "--guidance", "1")),
    "cmd_nano": Drawn("a clip, what its frame and motion decode to, and the motion", "predict", files=figure_clip),
    "llava_nano": Drawn("pictures with what is said of them", "predict", files=captioned),
    "m2_encoder_nano": Drawn("pictures with the texts that are nearest", "predict", ("--top-k", "3"), with_texts),
    "revunet3d_nano": Drawn("slices of a volume above the parts found in it", "predict", files=volume),
    "stack_vae_nano": Drawn("a series of many channels above its scores", "predict", files=series),
    "deftan2_nano": Drawn("spectrograms of a microphone and of the voice found", "predict", files=sound),
    "efficienttam_nano": Drawn("a figure followed through a clip", "predict", ("--point", "53,37"), clip),
    "scatterformer_nano": Drawn("what a cloud of points is of, from above", "predict", files=cloud),
    "dfa3d_nano": Drawn("what stands around four cameras, from above", "predict", files=views),
    "drama_nano": Drawn("frames of CartPole above what was imagined of them", "generate", ("--images", "12")),
}


def draw(model: str, drawn: Drawn, target: Path) -> str:
    """Draw it, and say by which command.

    Raises:
        RuntimeError: where the command fails, with its last line.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = drawn.files(folder)
        command, typed = drawn.command(model, files, f"{model}.png"), drawn.typed(model, files, f"{model}.png")
        run = subprocess.run(
            [sys.executable, "-m", "zoo.cli", *command[1:]], cwd=folder, capture_output=True, text=True
        )
        if run.returncode:
            raise RuntimeError(f"`{typed}`: {(run.stderr.strip().splitlines() or ['failed'])[-1]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / f"{model}.png", target)
    return typed


def chosen(patterns: Sequence[str]) -> Iterator[tuple[str, Drawn]]:
    """The models asked for."""
    for model, drawn in PICTURES.items():
        if any(fnmatch(model, pattern) for pattern in patterns):
            yield model, drawn


def main(argv: list[str] | None = None) -> None:
    parser = command_line("gallery", __doc__, patterns=PICTURES)
    options = parser.parse_args(argv)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere) if options.no_save else RESULTS / FOLDER
        for model, drawn in each(list(chosen(options.models)), "drawing"):
            command = draw(model, drawn, folder / f"{model}.png")
            family = lookup(model).family
            records.append({"name": model, "family": family, "shows": drawn.shows, "command": command})
    pictures = "".join(f"\n{r['name']}: {r['shows']}\n\n![{r['shows']}]({FOLDER}/{r['name']}.png)\n" for r in records)
    rows = [[r["name"], r["shows"], r["command"]] for r in records]
    publish(FOLDER, options, {"pictures": records}, ("Pictures", ["model", "shows", "command"], rows), before=pictures)


if __name__ == "__main__":
    main()

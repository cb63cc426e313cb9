"""Clips as a frame and a motion (CMD): how many numbers, how close, and motions that are drawn.

    zoo bench cmd                       # writes benchmarks/results/cmd.{json,md,png}
    zoo bench cmd --updates 20 --no-save

The bundled cmd_nano beside three autoencoders that are trained here in equal updates, with as many layers: CMD, CMD
without weights of the content frame, whose frame is the plain mean, and one whose latents are a vector for each patch
of each frame, with at least as many numbers. The score is PSNR of 128 generated test clips. Clips are drawn by the
bundled cmd_motion_shapes, given the content frames of test clips, and by video_dit_nano, which makes pixels of nothing
but a class. Distances are energy distances of pixels from other test clips, jerk is the mean second difference of the
light's middle, in pixels; FLOPs are those of all steps and of decoding.

Expected (arXiv 2403.14148): latents of a tenth of the numbers suffice, learned weights show more than a mean, motions
cost a fraction of the operations of clips (with the frame, 512 x 1024 pixels in 16 frames 7.7 times as fast), and clips
are better than those of models of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.clips import distance, held_out, jerk, shown
from zoo.benchmarks.common import command_line, last_paragraph, publish, telling
from zoo.benchmarks.learning import learn
from zoo.benchmarks.tables import Verdict, show_verdicts
from zoo.generative import CMD, picture
from zoo.generative.cmd import Layers
from zoo.kernels.flops import flop_counter
from zoo.train.data import MovingFiguresDataModule
from zoo.train.data.figures import MEAN, STD


class MeanFrame(CMD):
    """CMD whose content frame is the mean of all frames."""

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        motion, _ = super().encode(clips)
        return motion, clips.mean(2)


class Patches(CMD):
    """A vector of each patch of each frame, and nothing else."""

    def __init__(self, config: Any, width: int):
        super().__init__(config)
        self.width = width
        self.narrow, self.wide = nn.Linear(config.dim, width), nn.Linear(width, config.dim)

    def forward(self, clips: Tensor) -> Tensor:
        c = self.config
        frames = clips.transpose(1, 2).flatten(0, 1)
        h = self.encoder.to_patch_embedding(self._patched(frames)).unflatten(0, (len(clips), c.frames))
        z = self.narrow(self._through(self.encoder, h)).tanh()
        pixels = self._pixels(self.to_output, self._through(cast(Layers, self.decoder), self.wide(z))).sigmoid()
        return (pixels - MEAN) / STD

    @property
    def numbers(self) -> int:
        """Of a clip."""
        rows, columns = self.config.patches
        return self.config.frames * rows * columns * self.width


def learning_clips(step: int, count: int) -> Tensor:
    """Those of an update."""
    return MovingFiguresDataModule().build()["train"].fetch(torch.arange(count), step)[0]


@torch.no_grad()
def psnr(model: CMD, clips: Tensor) -> float:
    """Mean of the clips, in dB."""
    squares = ((model.eval()(clips) - clips) * STD).square().flatten(1).mean(1)
    return (-10 * squares.log10()).mean().item()


def autoencoders(updates: int) -> dict[str, CMD]:
    """All three, after as many updates."""
    config = cast(CMD, zoo.create_model("cmd_nano")).config
    rows, columns = config.patches
    width = -(-config.latent_size // (config.frames * rows * columns))
    made: dict[str, CMD] = {}
    kinds = {"CMD": CMD, "a mean as the frame": MeanFrame, "a vector a patch": partial(Patches, width=width)}
    for name, build in kinds.items():
        torch.manual_seed(0)
        model = made[name] = build(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

        def loss(step: int, model: CMD = model) -> Tensor:
            clips = learning_clips(step, 16)
            return (model(clips) - clips).abs().mean()

        learn(model, optimizer, loss, updates)
    return made


def operations(call: Callable[[], Any]) -> int:
    """FLOPs of a call."""
    with torch.no_grad(), flop_counter(display=False) as counter:
        call()
    return counter.get_total_flops()


def sampled(autoencoder: CMD, count: int, steps: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Name -> clips in [0, 1], and name -> tokens, FLOPs of a clip and how the clips are distributed."""
    moving: Any = zoo.create_model("cmd_motion_shapes", pretrained=True).eval()
    plain: Any = zoo.create_model("video_dit_nano", pretrained=True).eval()
    real = held_out(2 * count)
    with torch.no_grad():
        motion, content = autoencoder.encode(real[:count])
        again = autoencoder.decode(motion, content)

    def drawn(of: int = count) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return moving.animate(autoencoder, content[:of], steps=steps, generator=generator)

    def pixels(of: int = count) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return plain.sample(of, classes=torch.arange(of) % 10, steps=steps, generator=generator)

    still = content[:, :, None].expand_as(again)
    made = {
        "test clips": real[:count], "decoded again": again, "the content frame, still": still,
        "CMD, drawn motions": drawn(), "video_dit_nano": pixels(),
    }  # fmt: skip
    made = {name: shown(clips) for name, clips in made.items()}
    found: dict[str, dict[str, Any]] = {
        name: {"distance": distance(clips, shown(real[count:])), "jerk": jerk(clips)} for name, clips in made.items()
    }
    frames, side = plain.config.frames, plain.config.patch_size
    places = plain.config.image_shape[0] // side * (plain.config.image_shape[1] // side)
    found["CMD, drawn motions"] |= {
        "tokens": len(moving.positions) + len(moving.content_positions), "flops": operations(lambda: drawn(1))
    }  # fmt: skip
    found["video_dit_nano"] |= {"tokens": frames * places, "flops": operations(lambda: pixels(1))}
    return made, found


def verdicts(
    numbers: dict[str, int], whole: int, scores: dict[str, float], found: dict[str, dict[str, Any]]
) -> list[Verdict]:
    """What was expected, and found."""
    ours, plain = found["CMD, drawn motions"], found["video_dit_nano"]
    share, cheaper = numbers["CMD"] / whole, plain["flops"] / ours["flops"]
    mean, patches = scores["CMD"] - scores["a mean as the frame"], scores["CMD"] - scores["a vector a patch"]
    return [
        Verdict("a frame and a motion are a tenth of the numbers (cmd_64: 10.4 %)", f"{share:.0%}", share < 0.11),
        Verdict("learned weights of the frame keep more than a mean", f"{mean:+.2f} dB", mean > 0),
        Verdict("both keep more than as many numbers, a vector a patch", f"{patches:+.2f} dB", patches > 0),
        Verdict("a clip costs a 7.7th (abstract, with the frame, which is given here)",
                f"{cheaper:.1f} times fewer FLOPs, {plain['tokens'] / ours['tokens']:.1f} times fewer tokens",
                cheaper >= 7.7),
        Verdict("clips are nearer to true ones (FVD 212.7 beside 292.4; from true frames here)",
                f"100 x {100 * ours['distance']:.2f}, of the plain model {100 * plain['distance']:.2f}",
                ours["distance"] < plain["distance"]),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("cmd", __doc__)
    parser.add_argument("--updates", type=int, default=100, help="of each autoencoder that is trained here")
    parser.add_argument("--clips", type=int, default=64, help="that are made")
    parser.add_argument("--steps", type=int, default=20, help="of both samplers")
    options = parser.parse_args(arguments)
    bundled = cast(CMD, zoo.create_model("cmd_nano", pretrained=True).eval())
    test = held_out()
    with telling() as say:
        say("autoencoders")
        models = {"CMD, bundled": bundled, **autoencoders(options.updates)}
        say("clips")
        made, found = sampled(bundled, options.clips, options.steps)
    whole = test[0].numel()
    numbers = {name: getattr(model, "numbers", model.config.latent_size) for name, model in models.items()}
    scores = {name: psnr(model, test) for name, model in models.items()}

    def plot(path: Path) -> None:
        rows = torch.cat([clips[:3].transpose(1, 2).flatten(0, 1) for clips in made.values()])
        picture(rows, min(3, options.clips) * bundled.config.frames, 3).save(path)

    kept = [[name, f"{numbers[name]:,}", f"{numbers[name] / whole:.0%}", f"{scores[name]:.2f}"] for name in models]
    rows = [
        [name, f"{one['tokens']:,}" if "tokens" in one else "",
         f"{one['flops'] / 1e9:.3f}" if "flops" in one else "", f"{100 * one['distance']:.2f}", f"{one['jerk']:.3f}"]
        for name, one in found.items()
    ]  # fmt: skip
    publish(
        "cmd", options,
        {"updates": options.updates, "clips": options.clips, "steps": options.steps, "clip": whole, "numbers": numbers,
         "psnr": scores, "samples": found},
        show_verdicts(verdicts(numbers, whole, scores, found)),
        ("What a clip is kept in", ["autoencoder", "numbers", "of the clip's", "PSNR, dB"], kept),
        (f"{options.clips} clips, {options.steps} steps",
         ["", "tokens", "GFLOPs a clip", "100 x to other test clips", "jerk"], rows),
        before=last_paragraph(__doc__) + "\n\n", plot=plot,
        after=f"![clips](cmd.png)\n\nThree clips a row, from the top: {'; '.join(made)}.\n",
    )  # fmt: skip

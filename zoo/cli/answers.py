"""What `zoo predict` says of files that are no images to be classified: a function for each kind of model."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.output import say, show


def reconstruct(model: Any, known: Namespace) -> int:
    """Images, and what their codes decode to."""
    import torch
    from rich.table import Table

    from zoo.generative import picture, pixels, psnr, read

    images = checked(read, model, known.files, exif_orientation=known.exif_orientation)
    tokens = model.encode(images)
    before, after = (pixels(model, part.float()) for part in (images, model.decode(tokens)))
    table = Table("image", "tokens", "bits", "PSNR, dB")
    for path, own, ratio in zip(known.files, tokens, psnr(before, after).tolist(), strict=True):
        table.add_row(str(path), str(len(own)), str(len(own) * model.config.code_dim), f"{ratio:.2f}")
    show(table)
    if known.output is not None:
        both = picture(torch.cat([before, after]), len(before), max(1, 64 // before.shape[-1]))
        checked(both.save, known.output)
        say(f"written: {known.output}")
    return 0


def find_anomalies(model: Any, known: Namespace) -> int:
    """The moments of a series with the highest scores, and the channels that are furthest from what was expected."""
    from rich.table import Table

    from zoo.series import draw_scores, read_series

    if known.output is not None and len(known.files) > 1:
        raise UsageError(f"--output is of one series, got {len(known.files)} files")
    for path in known.files:
        series = model.normalised(checked(read_series, path, model.config.channels))
        scores = checked(model.scores, series)
        table = Table("moment", "score", "channels", title=str(path), title_justify="left")
        means = scores.mean(1)
        for index in means.topk(min(known.top_k, len(means))).indices.tolist():
            worst = scores[index].topk(min(3, scores.shape[1])).indices.tolist()
            table.add_row(str(index + model.config.window - 1), f"{means[index]:.3f}", ", ".join(map(str, worst)))
        show(table)
        if known.output is not None:
            checked(draw_scores, model, series, scores, known.output)
            say(f"written: {known.output}")
    return 0

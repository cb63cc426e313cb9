"""What `zoo predict` says of files that are no images to be classified: a function for each kind of model."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from zoo.cli.errors import UsageError, checked
from zoo.cli.output import CLIPS, PICTURES, check_suffix, say, show
from zoo.cli.sight import note_frames


def reconstruct(model: Any, known: Namespace) -> int:
    """Images, and what their codes decode to; three draws of a generative decoder."""
    import torch
    from rich.table import Table

    from zoo.generative import picture, pixels, psnr, read
    from zoo.generative.pictures import decoded

    check_suffix(known.output, PICTURES, "images")
    images = checked(read, model, known.files, exif_orientation=known.exif_orientation)
    note_frames(known.files)
    tokens = model.encode(images)
    before, *after = (pixels(model, part.float()) for part in (images, *decoded(model, tokens)))
    draws = [f"PSNR, dB, draw {index}" for index in range(len(after))] if len(after) > 1 else ["PSNR, dB"]
    table = Table("image", "tokens", "bits", *draws)
    ratios = torch.stack([psnr(before, part) for part in after], 1).tolist()
    for path, own, row in zip(known.files, tokens, ratios, strict=True):
        table.add_row(str(path), str(len(own)), str(len(own) * model.config.code_dim), *(f"{one:.2f}" for one in row))
    show(table)
    if known.output is not None:
        rows = checked(picture, torch.cat([before, *after]), len(before), max(1, 64 // before.shape[-1]))
        checked(rows.save, known.output)
        say(f"written: {known.output}")
    return 0


def retell(model: Any, known: Namespace) -> int:
    """A clip, and what its content frame and motion decode to."""
    import torch
    from rich.table import Table

    from zoo.generative import picture, psnr, write_gif
    from zoo.generative.clips import prepared, seen, strip
    from zoo.video import read_clip

    check_suffix(known.output, CLIPS, "clips")
    frames, _ = checked(read_clip, known.files, model.config.image_shape)
    clip = checked(prepared, model, frames)
    with torch.no_grad():
        motion, content = model.encode(clip)
        made = model.decode(motion, content)
    before, after = (seen(model, part)[0] for part in (clip, made))
    table = Table("clip", "frames", "numbers", "of content and motion", "PSNR, dB")
    kept = f"{model.config.latent_size} ({100 * model.config.latent_size / clip.numel():.0f} %)"
    count = f"{len(before)} of {len(frames)}"
    ratio = psnr(before[None], after[None]).item()
    table.add_row(" ".join(map(str, known.files)), count, str(clip.numel()), kept, f"{ratio:.2f}")
    show(table)
    enlarged = max(1, 64 // clip.shape[-1])
    if known.output is not None and known.output.suffix.lower() == ".gif":
        checked(write_gif, torch.stack([before, after]), known.output, enlarged)
    elif known.output is not None:
        parts = strip(model, clip, motion, content, made)
        checked(picture(parts, len(before) + 1, enlarged).save, known.output)
    if known.output is not None:
        say(f"written: {known.output}")
    return 0


def mark_out(model: Any, known: Namespace) -> int:
    """Which voxels of volumes belong to each class."""
    import numpy as np
    import torch
    from rich.table import Table

    from zoo.generative import picture
    from zoo.vision.volumes import read_volume, slices

    check_suffix(known.output, (".npy", *PICTURES), "volumes")
    if len(known.files) > 1 and known.output is not None:
        raise UsageError(f"--output is of one volume, got {len(known.files)} files")
    for path in known.files:
        volume = checked(read_volume, path, model.config.in_chans)
        with torch.no_grad():
            masks = checked(model, volume[None])[0] > 0
        table = Table("class", "voxels", "of the volume, %", title=str(path), title_justify="left")
        for index, mask in enumerate(masks):
            table.add_row(str(index), str(int(mask.sum())), f"{100 * mask.float().mean():.1f}")
        show(table)
        if known.output is not None and known.output.suffix.lower() == ".npy":
            checked(np.save, known.output, masks.numpy())
        elif known.output is not None:
            parts, columns = slices(volume, masks)
            checked(picture(parts, columns, max(1, 64 // parts.shape[-1])).save, known.output)
        if known.output is not None:
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


def enhance(model: Any, known: Namespace) -> int:
    """The speech in what microphones heard: a WAV file, or spectrograms above one another."""
    import torch
    from rich.table import Table

    from zoo.audio import as_loud_as_in, draw_spectrograms, read_wave, write_wave

    if len(known.files) > 1 and known.output is not None:
        raise UsageError(f"--output is of one sound, got {len(known.files)} files")
    check_suffix(known.output, (".wav", ".png"), "sounds")
    rate, table = model.config.sample_rate, Table("sound", "seconds", "speech", "of the power, %")
    for path in known.files:
        heard = checked(read_wave, path, model.config.num_mics, rate, model.config.window)
        with torch.no_grad():
            speech = as_loud_as_in(heard[0], model(heard[None])[0])
        for index, share in enumerate((speech.square().sum(1) / heard[0].square().sum()).tolist()):
            table.add_row(str(path), f"{heard.shape[1] / rate:.2f}", str(index + 1), f"{100 * share:.1f}")
        if known.output is not None and known.output.suffix == ".png":
            named = {"microphone": heard[0], **{f"speech {i + 1}": wave for i, wave in enumerate(speech)}}
            checked(draw_spectrograms, named, rate, known.output)
        elif known.output is not None:
            checked(write_wave, known.output, speech, rate)
    show(table)
    if known.output is not None:
        say(f"written: {known.output}")
    return 0


def follow(model: Any, known: Namespace) -> int:
    """The object that a point or a box names in the first frame of a clip, in each of them."""
    import torch
    from rich.table import Table

    from zoo.video import draw_strip, read_clip

    check_suffix(known.output, PICTURES, "clips with an object")
    pictures, own = checked(read_clip, known.files, model.config.img_size)
    prompt = _prompt(known, own, model.config.img_size)
    state, masks, table = model.init_state(), [], Table("frame", "object", "of the picture, %", "fit, as expected")
    with torch.no_grad():
        for number, frame in enumerate(model.normalised(pictures)):
            found = checked(model.step, frame[None], state, None if number else prompt)
            masks.append(found.mask[0] > 0)
            said = "seen" if found.score[0] > 0 else "not seen"
            table.add_row(str(number), said, f"{100 * masks[-1].float().mean():.1f}", f"{found.iou[0]:.2f}")
    show(table)
    if known.output is not None:
        chosen = checked(draw_strip, pictures, torch.stack(masks), prompt, known.output)
        say(f"written: {known.output}, frames {', '.join(map(str, chosen))}")
    return 0


def _prompt(known: Namespace, own: tuple[int, int], size: int) -> Any:
    """What --point and --box name, from pixels of the clip (width, height) to those that the model reads."""
    import torch

    from zoo.video import Prompt

    if not known.point and known.box is None:
        raise UsageError("a video model follows what --point X,Y or --box LEFT,TOP,RIGHT,BOTTOM names: give one")
    given = {"--point": (known.point or [], 2), "--box": ([known.box] if known.box else [], 4)}
    found: dict[str, Any] = {}
    for option, (texts, count) in given.items():
        rows = []
        for text in texts:
            numbers = checked(_numbers, option, text, count)
            inside = [
                0 <= number < side or (count == 4 and number == side)  # a box may end where the picture ends
                for number, side in zip(numbers, own * 2, strict=False)
            ]
            if not all(inside):
                raise UsageError(f"{option} must be in the picture of {own[0]} x {own[1]} pixels, got {text}")
            rows.append([number * size / side for number, side in zip(numbers, own * 2, strict=False)])
        if rows:
            found[option] = torch.tensor(rows)
    points = found.get("--point")
    labels = None if points is None else torch.ones(1, len(points), dtype=torch.long)
    return Prompt(None if points is None else points[None], labels, found.get("--box"))


def _numbers(option: str, text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"{option} takes {count} numbers with commas between them, got {text!r}")
    return numbers


def classify_points(model: Any, known: Namespace) -> int:
    """The likeliest classes of clouds of points, and a cloud from above."""
    import torch
    from rich.table import Table

    from zoo.spatial import draw_cloud, read_points

    if not model.config.num_classes:
        raise UsageError(f"{model.config_name} has no classes: it maps points to features of the ground")
    if len(known.files) > 1 and known.output is not None:
        raise UsageError(f"--output is of one cloud, got {len(known.files)} files")
    names = model.config.label_names
    names = names if len(names) == model.config.num_classes else ("",) * model.config.num_classes
    for path in known.files:
        points = checked(read_points, path, model.config.in_chans)
        with torch.no_grad():
            shares = checked(model, points[None])[0].softmax(0)
        table = Table("class", "label", "probability", title=str(path), title_justify="left")
        order = shares.topk(min(known.top_k, len(shares))).indices.tolist()
        for index in order:
            table.add_row(str(index), names[index], f"{shares[index]:.4f}")
        show(table)
        if known.output is not None:
            title = f"{names[order[0]] or order[0]}, {shares[order[0]]:.2f}"
            checked(draw_cloud, model, points, title, known.output)
            say(f"written: {known.output}")
    return 0


def look_around(model: Any, known: Namespace) -> int:
    """Where something stands around cameras, of an image of each: the likeliest cells of the ground."""
    import torch
    from rich.table import Table

    from zoo.spatial import draw_ground, read_views

    c = model.config
    with torch.no_grad():
        views = checked(read_views, known.files, model)
        shares = model(views[None])[0].sigmoid()
    table = Table("x, m", "y, m", "occupied", title=f"{int((shares > 0.5).sum())} of {shares.numel()} cells")
    for index in shares.flatten().topk(min(known.top_k, shares.numel())).indices.tolist():
        row, column = divmod(index, c.cells)
        x, y = ((place + 0.5) / c.cells * 2 * c.reach - c.reach for place in (column, row))
        table.add_row(f"{x:.1f}", f"{y:.1f}", f"{shares[row, column]:.4f}")
    show(table)
    if known.output is not None:
        checked(draw_ground, model, views, shares, known.output)
        say(f"written: {known.output}")
    return 0

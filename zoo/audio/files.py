"""Waves from WAV files and to them, and drawings of their spectra."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.audio.spectrum import spectrum

FULL = 2**15  # of samples of 16 bits
FLOOR = 80  # dB below the loudest, where a drawing ends


def read_wave(path: str | Path, channels: int, sample_rate: int, least: int = 1) -> Tensor:
    """(channels, N) float32 in [-1, 1) of a WAV file with 16 bits a sample.

    Args:
        path: of the file.
        channels, sample_rate: that it must have.
        least: samples of a channel that it must have.

    Raises:
        ValueError: for a file of other channels, another rate or other samples, or one that is empty, too short or
            silent.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found = (file.getnchannels(), file.getframerate(), 8 * file.getsampwidth())
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} must be a WAV file of 16 bits a sample: {error}") from error
    if found != (channels, sample_rate, 16):
        raise ValueError(
            f"{path} must have {channels} channels and {sample_rate} samples a second, as the model reads, of 16 bits "
            f"each; it has {found[0]}, {found[1]} and {found[2]}"
        )
    samples = np.frombuffer(data, "<i2").reshape(-1, channels).T.astype(np.float32) / FULL
    if samples.shape[1] < least:
        held = f"{samples.shape[1]} of a channel" if samples.size else "none: it is empty"
        raise ValueError(f"{path} must hold {least} samples or more, {1000 * least / sample_rate:g} ms, got {held}")
    if not samples.any():
        raise ValueError(f"{path} must hold a sound, got {samples.shape[1]} silent samples")
    return torch.from_numpy(samples)


def write_wave(path: str | Path, waves: Tensor, sample_rate: int) -> None:
    """A WAV file of 16 bits of waves (channels, N); what is above full scale is made quieter, as a whole.

    Raises:
        ValueError: for waves that are not finite, which 16 bits cannot say.
    """
    waves = waves.detach().float().cpu()
    if not waves.isfinite().all():
        raise ValueError(f"{path}: waves must be finite, got {int((~waves.isfinite()).sum())} samples that are not")
    waves = waves / max(1.0, waves.abs().max().item() * FULL / (FULL - 1))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(waves))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((waves * FULL).round().mT.contiguous().numpy().astype("<i2").tobytes())


def draw_spectrograms(waves: Mapping[str, Tensor], sample_rate: int, path: str | Path, window: int = 256) -> None:
    """An image of the spectrograms of waves (N,), one above another by name, in dB below the loudest of all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes: Any
    levels = [20 * spectrum(wave_[None, None], window)[0, 0].abs().clamp_min(1e-9).log10() for wave_ in waves.values()]
    loudest = max(level.max().item() for level in levels)
    figure, axes = pyplot.subplots(
        len(levels), 1, figsize=(8, 2.2 * len(levels)), sharex=True, squeeze=False, layout="constrained"
    )
    for (name, samples), level, axis in zip(waves.items(), levels, axes[:, 0], strict=True):
        axis.imshow(
            level.mT.numpy(), aspect="auto", origin="lower", vmin=loudest - FLOOR, vmax=loudest, cmap="magma",
            extent=(0, len(samples) / sample_rate, 0, sample_rate / 2000),
        )  # fmt: skip
        axis.set(title=name, ylabel="kHz")
    axes[-1, 0].set(xlabel="s")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

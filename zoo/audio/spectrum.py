"""Waveforms to short-time spectra and back, by windows that overlap by half."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spectrum(waves: Tensor, window: int) -> Tensor:
    """The spectra of Hann windows, as ``torch.stft`` has them with a hop of half a window and reflected ends.

    Args:
        waves: (B, M, N), with N above half a window.
        window: samples, even.

    Returns:
        (B, M, T, window / 2 + 1) complex, with T = 1 + N // (window / 2).
    """
    hop = window // 2
    frames = F.pad(waves, (hop, hop), mode="reflect").unfold(-1, window, hop)
    return torch.fft.rfft(frames * _hann(window, waves))


def waveform(spectra: Tensor, window: int) -> Tensor:
    """The inverse: what ``torch.istft`` gives, (T - 1) * window / 2 samples.

    Args:
        spectra: (B, M, T, window / 2 + 1) complex.
        window: samples, even.

    Returns:
        (B, M, N).
    """
    hann = _hann(window, spectra.real)
    first, second = (torch.fft.irfft(spectra, n=window) * hann).chunk(2, dim=-1)  # (B, M, T, hop)
    weight = sum(part.square() for part in hann.chunk(2))
    return ((second[..., :-1, :] + first[..., 1:, :]) / weight).flatten(-2)


def as_loud_as_in(heard: Tensor, parts: Tensor) -> Tensor:
    """Waves (S, N), each as loud as it explains most of what was heard, (N,): what is trained by a ratio that no
    loudness changes has none of its own."""
    power = parts.square().sum(-1, keepdim=True).clamp_min(torch.finfo(parts.dtype).tiny)
    return parts * (parts * heard).sum(-1, keepdim=True) / power


def _hann(window: int, like: Tensor) -> Tensor:
    return torch.hann_window(window, dtype=like.dtype, device=like.device)

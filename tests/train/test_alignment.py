"""Embeddings brought to one place: the equation, what it keeps, and what it is for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.train.alignment import Alignment


def embeddings(count: int = 50, gap: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the same things, of two kinds, each around a place of its own."""
    things, place = torch.randn(count, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    noise = 0.3 * torch.randn(2, count, 8, dtype=torch.float64)
    return things + noise[0] + gap * place, things + noise[1] - gap * place


def test_the_equation():
    u, v = embeddings()
    align = Alignment.fitted(u, v, share=0.6)
    a, b = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    gap = a.mean(0) - b.mean(0)
    torch.testing.assert_close(align.gap, gap)
    first, second = align(u[:3], v[:3])
    torch.testing.assert_close(first, F.normalize(a[:3] - 0.3 * gap))
    torch.testing.assert_close(second, F.normalize(b[:3] + 0.3 * gap))
    whole = Alignment.fitted(u, v, unit=False)(u, v)
    torch.testing.assert_close(whole[0].mean(0), whole[1].mean(0))
    for part, kept in zip(Alignment.fitted(u, v, share=0.0)(a, b), (a, b), strict=True):
        torch.testing.assert_close(part, kept)


def test_what_belongs_together_is_found_better():
    pairs = embeddings(400, gap=2.0)
    (u, x), (v, y) = (part.split(200) for part in pairs)
    right = [
        (a @ b.mT).argmax(1).eq(torch.arange(200)).double().mean().item()
        for a, b in (Alignment.fitted(u, v, share)(x, y) for share in (0.0, 1.0))
    ]
    assert right[1] > right[0] + 0.2


def test_errors():
    with pytest.raises(ValueError, match="of one width, got"):
        Alignment.fitted(torch.randn(3, 4), torch.randn(3, 5))
    with pytest.raises(ValueError, match="share must be at least 0"):
        Alignment.fitted(torch.randn(3, 4), torch.randn(3, 4), share=-1.0)

"""How alike two sets of images are, and two sets of predictions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.quantize.calibration import Calibration

WINDOW = 7  # pixels
MOST = 100.0  # dB: of predictions that are the same


def clean_images(model: Any, calibration: Calibration, outputs: Iterable[Tensor]) -> list[Tensor]:
    """The images (B, C, H, W) without noise that a diffusion model's predictions stand for, a batch of the calibration
    after another."""
    found = []
    for batch, velocity in zip(calibration.batches, outputs, strict=True):
        x, t = (tensor.to(velocity) for tensor in batch[:2])
        found.append(model.path.ends(x, velocity, t)[0])
    return found


def ratio_db(found: Tensor, expected: Tensor) -> Tensor:
    r""":math:`10 \log_{10} (\|y\|^2 / \|y - \hat y\|^2)`, 100 at most."""
    noise = (found - expected).float().square().sum()
    signal = expected.float().square().sum()
    return (10 * (signal / noise.clamp(min=torch.finfo(torch.float32).tiny)).log10()).clamp(max=MOST)


def ssim(images: Tensor, others: Tensor, window: int = WINDOW) -> Tensor:
    r"""Structural similarity (B,) of images (B, C, H, W): the mean, over all windows within them, of

    .. math::
        \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}{(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)},
        \quad c_1 = (0.01 L)^2, \; c_2 = (0.03 L)^2

    with L the range of all ``others``.

    Args:
        window: side in pixels, at most the images'; all pixels count the same.

    Paper: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004.
    """
    x, y = images.double(), others.double()
    size = min(window, *x.shape[-2:])
    least, most = y.aminmax()
    one, two = ((share * (most - least)) ** 2 for share in (0.01, 0.03))

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, size, 1)

    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    found = (2 * mx * my + one) * (2 * both + two) / ((mx**2 + my**2 + one) * (vx + vy + two))
    return found.flatten(1).mean(1).float()

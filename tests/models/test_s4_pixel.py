"""S4 over pixel sequences against its formulas written out pixel by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo


def randomised(**options: Any) -> Any:
    """A small model in eval mode and float64 whose batch norms have seen something."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("s4_pixel_nano", img_size=5, dim=6, depth=2, dtype=torch.float64, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval()


def norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    scale = p[f"{name}.weight"] / (p[f"{name}.running_var"] + 1e-5).sqrt()
    return (x - p[f"{name}.running_mean"]) * scale + p[f"{name}.bias"]


def mixer(u: Tensor, kernels: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """u (T, dim), kernels (2, dim, T) of the past and of the future."""
    past, future = kernels
    y = p[f"{name}.D"] * u
    for t in range(len(u)):
        for j in range(len(u)):
            y[t] += past[:, t - j] * u[j] if j <= t else future[:, j - t - 1] * u[j]
    y = F.gelu(y) @ p[f"{name}.output_linear.weight"].T + p[f"{name}.output_linear.bias"]
    value, gate = y.chunk(2, -1)
    return value * torch.sigmoid(gate)


@pytest.mark.parametrize("prenorm", [True, False])
def test_logits_are_the_formulas(prenorm):
    model = randomised(prenorm=prenorm)
    p, image = model.state_dict(), torch.randn(1, 1, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        x = image.flatten()[:, None] * p["patch_embed.proj.weight"].flatten() + p["patch_embed.proj.bias"]
        for i, block in enumerate(model.blocks):
            kernels = block.mixer.kernel(25)
            if prenorm:
                x = x + mixer(norm(x, p, f"blocks.{i}.before"), kernels, p, f"blocks.{i}.mixer")
            else:
                x = norm(x + mixer(x, kernels, p, f"blocks.{i}.mixer"), p, f"blocks.{i}.after")
        x = norm(x, p, "norm") if prenorm else x
        expected = p["head.weight"] @ x.mean(0) + p["head.bias"]
        torch.testing.assert_close(model(image)[0], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_which_pixels_a_feature_depends_on(bidirectional):
    """All of them, or those above and to the left of it in its row, and itself."""
    model = randomised(bidirectional=bidirectional)
    image = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    (features,) = model.forward_intermediates(image, indices=1, intermediates_only=True)
    (gradient,) = torch.autograd.grad(features[0, :, 2, 3].square().sum(), image)
    reached = torch.arange(25).view(5, 5) <= (24 if bidirectional else 2 * 5 + 3)
    assert torch.equal(gradient[0, 0].abs() > 1e-12, reached)


def test_batch_norm_of_training_is_over_images_and_pixels():
    model = randomised().train()
    x = model.blocks[0].before(torch.randn(3, 25, 6, dtype=torch.float64))
    weight, bias = model.blocks[0].before.weight, model.blocks[0].before.bias
    torch.testing.assert_close(x.mean((0, 1)), bias)
    torch.testing.assert_close(x.std((0, 1), correction=0), weight, atol=1e-4, rtol=1e-4)


def test_another_pooling_is_an_error():
    model: Any = zoo.create_model("s4_pixel_nano")
    model.reset_classifier(3, "avg")
    with pytest.raises(ValueError, match=r"pools by the mean over the pixels \('avg'\), not 'token'"):
        model.reset_classifier(3, "token")

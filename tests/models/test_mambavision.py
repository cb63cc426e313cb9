"""MambaVision against loops over windows and tokens, written over the names of the authors' files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.checkpoints import convert
from zoo.layers import MambaVisionMixer

SMALL: dict[str, Any] = {
    "stem_dim": 6, "dims": (8, 12, 16, 24), "depths": (1, 2, 3, 2), "windows": (0, 0, 3, 2), "num_heads": (0, 0, 2, 3),
    "d_state": 3, "num_classes": 5, "img_size": (64, 40),
}  # fmt: skip
GIGA_MACS = {"mambavision_t": 4.4, "mambavision_b": 15.0, "mambavision_l3": 122.3}  # of the authors' table


def perturbed(name: str, **options: Any) -> Any:
    """A model in float64 none of whose tensors is special."""
    model: Any = zoo.create_model(name, dtype=torch.float64, **options).eval()
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 1.5) if tensor.dim() == 1 else (-0.4, 0.4)
            nn.init.uniform_(tensor, low, high) if "A_log" not in key else nn.init.uniform_(tensor, 0, 1)
    return model


def as_published(model: Any) -> dict[str, Tensor]:
    """The model's tensors in the authors' layout."""
    tensors = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in (("0.conv", 0), ("0.bn", 1), ("1.conv", 3), ("1.bn", 4)):
            key = key.replace(f"stages.0.downsample.{ours}.", f"patch_embed.conv_down.{theirs}.")
        key = re.sub(
            r"stages\.(\d)\.downsample\.", lambda m: f"levels.{int(m[1]) - 1}.downsample.reduction.0.", key
        ).replace("stages.", "levels.")
        key = re.sub(r"branch\.(\d)\.conv\.", lambda m: f"conv{int(m[1]) + 1}.", key)
        key = re.sub(r"branch\.(\d)\.bn\.", lambda m: f"norm{int(m[1]) + 1}.", key)
        key = re.sub(r"scale(\d)\.gamma", r"gamma_\1", key)
        if key.endswith("mixer.conv1d.weight"):
            for part, name in zip(tensor.chunk(2), "xz", strict=True):
                tensors[key.replace("conv1d", f"conv1d_{name}")] = part
        else:
            tensors[key] = tensor / 2 if key.endswith("dt_proj.bias") else tensor
    return tensors


def batch_norm(x: Tensor, p: dict[str, Tensor], eps: float) -> Tensor:
    mean, var, weight, bias = (p[k][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (var + eps).sqrt() * weight + bias


def part(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in p.items() if key.startswith(prefix)}


def mixer(u: Tensor, p: dict[str, Tensor]) -> Tensor:
    """u (T, dim); loops over time."""
    steps, half = len(u), len(p["D"])
    projected = u @ p["in_proj.weight"].T
    halves = []
    for x, name in ((projected[:, :half], "x"), (projected[:, half:], "z")):
        weight, y = p[f"conv1d_{name}.weight"][:, 0], torch.zeros_like(x)
        for t in range(steps):
            for tap, other in enumerate((t - 1, t, t + 1)):
                if 0 <= other < steps:
                    y[t] += weight[:, tap] * x[other]
        halves.append(F.silu(y))
    x, z = halves
    d_state, rank = p["A_log"].shape[1], p["dt_proj.weight"].shape[1]
    h, outputs = torch.zeros(half, d_state, dtype=u.dtype), []
    for t in range(steps):
        r, B, C = (p["x_proj.weight"] @ x[t]).split([rank, d_state, d_state])
        dt = F.softplus(p["dt_proj.weight"] @ r + 2 * p["dt_proj.bias"])  # the authors' forward adds it twice
        h = torch.exp(dt[:, None] * -p["A_log"].exp()) * h + (dt * x[t])[:, None] * B
        outputs.append(torch.cat([h @ C + p["D"] * x[t], z[t]]))
    return torch.stack(outputs) @ p["out_proj.weight"].T


def attention(u: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    q, k, v = (u @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, dim=-1)
    found = []
    for a, b, c in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
        found.append((a @ b.T / a.shape[1] ** 0.5).softmax(-1) @ c)
    return torch.cat(found, dim=-1) @ p["proj.weight"].T + p["proj.bias"]


def block(u: Tensor, p: dict[str, Tensor], heads: int) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    own = part(p, "mixer.")
    mixed = mixer(norm(u, "norm1"), own) if "D" in own else attention(norm(u, "norm1"), own, heads)
    u = u + p.get("gamma_1", 1) * mixed
    hidden = F.gelu(norm(u, "norm2") @ p["mlp.fc1.weight"].T + p["mlp.fc1.bias"])
    return u + p.get("gamma_2", 1) * (hidden @ p["mlp.fc2.weight"].T + p["mlp.fc2.bias"])


def logits_of(image: Tensor, p: dict[str, Tensor], config: Any) -> Tensor:
    """image (C, H, W) -> (num_classes,)."""
    x = image[None]
    for index in (0, 3):
        x = F.conv2d(x, p[f"patch_embed.conv_down.{index}.weight"], stride=2, padding=1)
        x = batch_norm(x, part(p, f"patch_embed.conv_down.{index + 1}."), 1e-4).relu()
    for level, depth in enumerate(config.depths):
        blocks = [part(p, f"levels.{level}.blocks.{index}.") for index in range(depth)]
        if window := config.windows[level]:
            height, width = x.shape[2:]
            below, right = -height % window, -width % window
            padded = F.pad(x, (0, right, 0, below))[0]
            for top in range(0, height + below, window):
                for left in range(0, width + right, window):
                    rows, columns = slice(top, top + window), slice(left, left + window)
                    tokens = torch.stack([padded[:, i, j] for i in range(top, top + window)
                                          for j in range(left, left + window)])  # fmt: skip
                    for own in blocks:
                        tokens = block(tokens, own, config.num_heads[level])
                    padded[:, rows, columns] = tokens.T.reshape(-1, window, window)
            x = padded[None, :, :height, :width]
        else:
            for own in blocks:
                y = F.conv2d(x, own["conv1.weight"], own["conv1.bias"], padding=1)
                y = F.gelu(batch_norm(y, part(own, "norm1."), 1e-5), approximate="tanh")
                y = F.conv2d(y, own["conv2.weight"], own["conv2.bias"], padding=1)
                x = x + batch_norm(y, part(own, "norm2."), 1e-5)
        if level < len(config.depths) - 1:
            x = F.conv2d(x, p[f"levels.{level}.downsample.reduction.0.weight"], stride=2, padding=1)
    x = batch_norm(x, part(p, "norm."), 1e-5)
    return p["head.weight"] @ x.mean((0, 2, 3)) + p["head.bias"]


@pytest.mark.parametrize("name", ["mambavision_t", "mambavision_b"])
def test_a_file_of_the_authors_gives_what_their_formulas_say(name, tmp_path):
    model = perturbed(name, **SMALL)
    tensors = as_published(model)
    assert ("levels.2.blocks.0.gamma_1" in tensors) == (name == "mambavision_b")
    torch.save({"state_dict": tensors, "epoch": 299}, tmp_path / "mambavision.pth.tar")
    path = tmp_path / "mambavision.pth.tar"
    loaded: Any = zoo.create_model(name, checkpoint_path=path, dtype=torch.float64, **SMALL).eval()
    images = torch.randn(2, 3, 64, 40, dtype=torch.float64)
    with torch.no_grad():
        logits = loaded(images)
        for image, row in zip(images, logits, strict=True):
            torch.testing.assert_close(row, logits_of(image, tensors, model.config), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(loaded.fuse()(images), logits, atol=1e-9, rtol=1e-9)


# a repository's config.json in small; B-1K has layer_scale and layer_scale_conv, T-1K neither
ON_THE_HUB: dict[str, Any] = {
    "model_type": "mambavision", "architectures": ["MambaVisionModelForImageClassification"], "depths": [1, 2, 3, 2],
    "dim": 8, "in_dim": 6, "drop_path_rate": 0.2, "mlp_ratio": 2, "num_heads": [2, 4, 2, 4],
    "window_size": [8, 8, 3, 2], "id2label": {"0": "a duck", "1": "a goose"},
}  # fmt: skip


@pytest.mark.parametrize("scaled", [False, True])
def test_a_repository_of_the_authors(scaled, tmp_path):
    """Described by its config.json, with the names of the authors' files behind "model."."""
    sizes = {"dims": (8, 16, 32, 64), "depths": (1, 2, 3, 2), "num_heads": (0, 0, 2, 4), "windows": (0, 0, 3, 2)}
    options = sizes | {"mlp_ratio": 2.0, "layer_scale": 1e-5 if scaled else None, "num_classes": 2}
    model = perturbed("mambavision_t", stem_dim=6, **options).float()
    save_file({f"model.{k}": t.contiguous() for k, t in as_published(model).items()}, tmp_path / "model.safetensors")
    described = ON_THE_HUB | ({"layer_scale": 1e-5, "layer_scale_conv": None} if scaled else {})
    describe(tmp_path, described)
    loaded: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert loaded.config.image_shape == (48, 48) and loaded.config.label_names == ("a duck", "a goose")
    assert loaded.config.crop_pct == 1.0 and loaded.config.mean == model.config.mean
    x = torch.randn(1, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))
    describe(tmp_path, described | {"layer_scale_conv": 1e-5})
    with pytest.raises(ValueError, match="layer_scale_conv must be None, got 1e-05"):
        zoo.create_model(f"local-dir:{tmp_path}")


def describe(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["mambavision_t2", "mambavision_l3"])
def test_a_repository_of_a_size_has_its_name(name):
    config: Any = zoo.registry.lookup(name).configure()
    found, fields = convert.foreign_config(
        {"model_type": "mambavision", "depths": list(config.depths), "dim": config.dims[0], "in_dim": config.stem_dim,
         "num_heads": [2, 4, *config.num_heads[2:]], "window_size": [8, 8, *config.windows[2:]], "mlp_ratio": 4,
         "layer_scale": config.layer_scale}
    )  # fmt: skip
    assert found == name
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}.items() <= vars(config).items()


@pytest.mark.parametrize("name", GIGA_MACS)
def test_work_is_what_the_authors_state(name):
    model: Any = zoo.create_model(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *model.config.image_shape, device="meta"))
    flops = counter.get_flop_counts()["Global"]
    macs = sum(count for op, count in flops.items() if str(op) in ("aten.convolution", "aten.mm", "aten.addmm")) / 2
    assert macs / 1e9 == pytest.approx(GIGA_MACS[name], rel=0.015)  # what else is in theirs they do not say


def test_maps_of_images_of_any_size():
    model: Any = zoo.create_model("mambavision_t", features_only=True, **SMALL).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32] and model.feature_info.channels() == [8, 12, 16, 24]
    for size in ((64, 40), (33, 97), (1, 5)):
        shapes = [tuple(found.shape[2:]) for found in model(torch.randn(1, 3, *size))]
        assert shapes == model.model.config.map_shapes(*size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": (0, 3), "num_heads": (2, 2)}, "windows and num_heads must be 0 for the same stages"),
        ({"stem_strides": (2,)}, "stem_strides must hold 2 strides"),
        ({"num_heads": (0, 3)}, "num_heads must divide dim"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("mambavision_nano", **options)


@pytest.mark.parametrize(("dim", "d_conv"), [(9, 3), (8, 4)])
def test_errors_of_the_mixer(dim, d_conv):
    with pytest.raises(ValueError, match="expand \\* dim must be even and d_conv odd"):
        MambaVisionMixer(dim, d_conv=d_conv)

"""VMamba against loops over pixels in four orders, written over the names of the authors' files."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.layers import SS2D
from zoo.layers.ssm.ss2d import DIRECTIONS, to_map, to_sequence

SMALL: dict[str, Any] = {
    "dims": (8, 12, 16, 20), "depths": (1, 1, 2, 1), "d_state": 2, "num_classes": 5, "img_size": (36, 20)
}  # fmt: skip
GIGA_FLOPS = {  # of the authors' tables
    "vanilla_vmamba_tiny": 5.6, "vmamba_tiny_s2l5": 4.9, "vmamba_small_s1l20": 8.6, "vmamba_base_s2l15": 15.4
}  # fmt: skip


def perturbed(name: str, **options: Any) -> Any:
    """A model in float64 none of whose tensors is special."""
    model: Any = zoo.create_model(name, dtype=torch.float64, **options).eval()
    for key, tensor in model.state_dict().items():
        low, high = (0.5, 1.5) if tensor.dim() == 1 else (-0.4, 0.4)
        nn.init.uniform_(tensor, low, high) if "A_log" not in key else nn.init.uniform_(tensor, 0, 1)
    return model


def as_published(model: Any, first_version: bool = False) -> dict[str, Tensor]:
    """The model's tensors in the authors' layout, perhaps with the names of the first version's files."""
    tensors, overlapping = {}, model.config.overlapping
    stacked: dict[str, list[Tensor]] = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in (("0.conv", 0), ("0.norm", 2), ("2.conv", 5), ("2.norm", 7)):
            key = key.replace(f"stages.0.downsample.{ours}.", f"patch_embed.{theirs}.")
        if found := re.match(r"stages\.(\d)\.downsample\.(\w+)\.(.+)", key):
            layer = {"conv": 1, "norm": 3}[found[2]] if overlapping else found[2]
            key = f"layers.{int(found[1]) - 1}.downsample.{layer}.{found[3]}"
        key = re.sub(r"^(norm|head)\.", r"classifier.\1.", key.replace("stages.", "layers."))
        if found := re.fullmatch(r"(.+\.dt_projs)\.\d\.(\w+)", key):
            stacked.setdefault(f"{found[1]}_{found[2]}", []).append(tensor)
            continue
        if key.endswith("x_proj.weight"):
            key, tensor = key.replace("x_proj.", "x_proj_"), tensor.unflatten(0, (4, -1))
        if first_version:
            for ours, theirs in (("classifier.", ""), (".norm.", ".ln_1."), (".op.", ".self_attention.")):
                key = key.replace(ours, theirs) if ours != ".norm." or ".blocks." in key else key
            key = key.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        tensors[key] = tensor
    for key, parts in stacked.items():
        tensors[key.replace(".op.", ".self_attention.") if first_version else key] = torch.stack(parts)
    return tensors


def layer_norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    """Over the last axis."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def scans(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """x (H, W, D) -> the sum over four walks through its pixels, one step after another."""
    height, width, dim = x.shape
    rows = [(i, j) for i in range(height) for j in range(width)]
    columns = [(i, j) for j in range(width) for i in range(height)]
    rank, d_state = p["dt_projs_weight"].shape[2], p["A_logs"].shape[1]
    y = torch.zeros_like(x)
    for k, walk in enumerate((rows, columns, rows[::-1], columns[::-1])):
        A, D = -p["A_logs"].unflatten(0, (4, dim))[k].exp(), p["Ds"].unflatten(0, (4, dim))[k]
        h = torch.zeros(dim, d_state, dtype=x.dtype)
        for i, j in walk:
            r, B, C = (p["x_proj_weight"][k] @ x[i, j]).split([rank, d_state, d_state])
            dt = F.softplus(p["dt_projs_weight"][k] @ r + p["dt_projs_bias"][k])
            h = torch.exp(dt[:, None] * A) * h + (dt * x[i, j])[:, None] * B
            y[i, j] += h @ C + D * x[i, j]
    return y


def ss2d(u: Tensor, p: dict[str, Tensor]) -> Tensor:
    """u (H, W, dim)."""
    dim = len(p["Ds"]) // 4
    projected = u @ p["in_proj.weight"].T
    x, z = projected[..., :dim], projected[..., dim:]
    x = F.silu(F.conv2d(x.permute(2, 0, 1), p["conv2d.weight"], p.get("conv2d.bias"), padding=1, groups=dim))
    y = layer_norm(scans(x.permute(1, 2, 0), p), p, "out_norm")
    return (y * F.silu(z) if z.numel() else y) @ p["out_proj.weight"].T


def part(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in p.items() if key.startswith(prefix)}


def conv_norm(x: Tensor, p: dict[str, Tensor], conv: str, norm: str, stride: int) -> Tensor:
    """x (H, W, C); patches that overlap are padded."""
    weight = p[f"{conv}.weight"]
    y = F.conv2d(x.permute(2, 0, 1), weight, p[f"{conv}.bias"], stride, padding=weight.shape[2] % 2)
    return layer_norm(y.permute(1, 2, 0), p, norm)


def merged(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """x (H, W, C): upper left, lower left, upper right, lower right neighbours; zeros beyond the end."""
    height, width = x.shape[:2]
    zeros, rows = torch.zeros_like(x[0, 0]), []
    for i in range(0, height, 2):
        cells = ([(i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)] for j in range(0, width, 2))
        rows.append(torch.stack(
            [torch.cat([x[a, b] if a < height and b < width else zeros for a, b in cell]) for cell in cells]
        ))  # fmt: skip
    return layer_norm(torch.stack(rows), p, "norm") @ p["reduction.weight"].T


def logits_of(image: Tensor, p: dict[str, Tensor], depths: tuple[int, ...]) -> Tensor:
    """image (C, H, W) -> (num_classes,)."""
    x = image.permute(1, 2, 0)
    if "patch_embed.5.weight" in p:
        x = F.gelu(conv_norm(x, p, "patch_embed.0", "patch_embed.2", 2))
        x = conv_norm(x, p, "patch_embed.5", "patch_embed.7", 2)
    else:
        x = conv_norm(x, p, "patch_embed.0", "patch_embed.2", 4)
    for layer, depth in enumerate(depths):
        for index in range(depth):
            own = part(p, f"layers.{layer}.blocks.{index}.")
            x = x + ss2d(layer_norm(x, own, "norm"), part(own, "op."))
            if "norm2.weight" in own:
                hidden = F.gelu(layer_norm(x, own, "norm2") @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"])
                x = x + hidden @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]
        down = part(p, f"layers.{layer}.downsample.")
        if down:
            x = conv_norm(x, down, "1", "3", 2) if "1.weight" in down else merged(x, down)
    pooled = layer_norm(x, p, "classifier.norm").mean((0, 1))
    return p["classifier.head.weight"] @ pooled + p["classifier.head.bias"]


@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "vmamba_tiny_s1l8", "vanilla_vmamba_tiny"])
def test_a_file_of_the_authors_gives_what_their_formulas_say(name, tmp_path):
    model = perturbed(name, **SMALL)
    tensors, images = as_published(model), torch.randn(2, 3, 36, 20, dtype=torch.float64)
    forms = {"new": tensors, "matrices stored as convolutions": {
        key: tensor[:, :, None, None] if re.search(r"(_proj|fc\d|reduction)\.weight", key) else tensor
        for key, tensor in tensors.items()
    }}  # fmt: skip
    if name.startswith("vanilla"):
        forms["first version"] = as_published(model, first_version=True)
    expected = torch.stack([logits_of(image, tensors, model.config.depths) for image in images])
    for form, published in forms.items():
        torch.save({"model": published}, tmp_path / "vmamba.pth")
        loaded: Any = zoo.create_model(
            name, checkpoint_path=tmp_path / "vmamba.pth", dtype=torch.float64, **SMALL
        ).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), expected, atol=1e-9, rtol=1e-9, msg=form)
            torch.testing.assert_close(loaded.fuse()(images), expected, atol=1e-9, rtol=1e-9, msg=form)


def test_the_four_orders_and_back():
    """The first costs nothing, the others one copy."""
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    walks = [[(i, j) for i in range(3) for j in range(4)], [(i, j) for j in range(4) for i in range(3)]]
    for direction, walk in enumerate([*walks, walks[0][::-1], walks[1][::-1]]):
        sequence = to_sequence(x, direction)
        assert torch.equal(sequence, torch.stack([x[:, i, j] for i, j in walk], dim=1))
        assert torch.equal(to_map(sequence, direction, 3, 4), x)
        assert (to_map(sequence, direction, 3, 4).data_ptr() == sequence.data_ptr()) == (direction < 2)
    assert to_sequence(x, 0).data_ptr() == x.data_ptr() and direction + 1 == DIRECTIONS


def test_maps_of_images_of_any_size():
    for name in ("vmamba_tiny_s1l8", "vanilla_vmamba_tiny"):
        model: Any = zoo.create_model(name, features_only=True, **SMALL).eval()
        assert model.feature_info.reduction() == [4, 8, 16, 32] and model.feature_info.channels() == [8, 12, 16, 20]
        for size in ((36, 20), (33, 98), (7, 5)):
            shapes = [tuple(found.shape[2:]) for found in model(torch.randn(1, 3, *size))]
            assert shapes == model.model.config.map_shapes(*size)
    with pytest.raises(ValueError, match=r"sides of at least 4 pixels, a patch, got \(3, 9\)"):
        model(torch.randn(1, 3, 3, 9))


@pytest.mark.parametrize("name", GIGA_FLOPS)
def test_work_is_what_the_authors_state(name):
    """They count a multiply-accumulate as one, 5 for a number normalised, and 9 for a state of a scan and 1 for its
    skip (github.com/state-spaces/mamba/issues/110)."""
    model: Any = zoo.create_model(name, device="meta").eval()
    further = [0]

    def normalised(module: nn.Module, args: Any, _: Any) -> None:
        further[0] += 5 * args[0].numel()

    def scanned(module: Any, args: Any, _: Any) -> None:
        pixels = args[0].shape[1] * args[0].shape[2]
        further[0] += pixels * (9 * module.A_logs.numel() + module.Ds.numel())

    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, SS2D)):
            module.register_forward_hook(scanned if isinstance(module, SS2D) else normalised)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    products = (count for op, count in counter.get_flop_counts()["Global"].items() if "selective_scan" not in str(op))
    assert round((sum(products) / 2 + further[0]) / 1e9, 1) == GIGA_FLOPS[name]


def test_step_sizes_start_where_the_authors_do():
    op = zoo.create_model("vmamba_nano").stages[0].blocks[0].op
    dt = F.softplus(torch.stack([projection.bias for projection in op.dt_projs]))
    assert dt.min() >= 1e-4 and dt.max() <= 0.1 and dt.std() > 0

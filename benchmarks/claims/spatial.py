"""Models of points and cameras: windows of any number of voxels, and features that are lifted by depth."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts
from zoo.benchmarks.claims.tools import flops, growth
from zoo.kernels import available_implementations, deformable_attention_3d
from zoo.kernels.deformable_attention_3d import factorised, reference
from zoo.layers.voxels import ScatteredLinearAttention
from zoo.train.data import CamerasDataModule
from zoo.train.tasks.occupancy import occupancy_loss

counts(
    "scatterformer_sizes", "scatterformer", "2401.00912", says=SIZES,
    source="the authors' encoder of points and 3-D backbone, counted",
    figure={"scatterformer_waymo": "4.246M", "scatterformer_nuscenes": "4.250M"},
)  # fmt: skip
beyond(
    "scatterformer_detection", "scatterformer", "2401.00912",
    says="73.8 mAPH (L2) on Waymo and 72.4 NDS on nuScenes, at 23 frames a second.", source="abstract",
    why="It takes the data sets, which are downloads, a detector behind the backbone and a GPU.",
)  # fmt: skip
beyond(
    "dfa3d_detection", "dfa3d", "2307.12972",
    says="1.41 mAP more on average than by 2D attention on nuScenes, 15.1 with the true depth.", source="abstract",
    why="It takes the data set, which is a download, and days of GPUs.",
)  # fmt: skip


@claim(
    "scatterformer", "2401.00912", says="Voxels of all windows are one sequence, and attend to their window alone.",
    source="abstract: scattered linear attention", evidence="identity", value="largest difference", at_most=1e-10,
)  # fmt: skip
def scatterformer_windows() -> Found:
    """One call for 40 windows of 1 to 300 voxels, against a call for each window, in float64."""
    layer = ScatteredLinearAttention(32, 4).double()
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 301, (40,), generator=generator)
    window = torch.arange(40).repeat_interleave(sizes)[torch.randperm(int(sizes.sum()), generator=generator)]
    x = torch.randn(len(window), 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = layer(x, window, 40)
        apart = max(
            (found[window == index] - layer(x[window == index], torch.zeros(int(size), dtype=torch.int64), 1))
            .abs().max().item()
            for index, size in enumerate(sizes)
        )  # fmt: skip
    return Found(apart, {"voxels": len(window)})


@claim(
    "scatterformer", "2401.00912", says="Operations grow linearly with the voxels, however they are spread.",
    source="abstract: linear attention, voxels of all windows as a single sequence", evidence="cost",
    value="exponent over the voxels", at_most=1.1,
)  # fmt: skip
def scatterformer_operations_over_voxels() -> Found:
    """Products of the attention at the published width, for 1024 to 8192 voxels of which half are in one window."""
    layer = ScatteredLinearAttention(128, 4)

    def cost(voxels: int) -> int:
        window = (torch.arange(voxels) - voxels // 2).clamp(min=0) % 64
        return flops(layer, torch.zeros(voxels, 128), window, 64)

    return growth(cost, (1024, 2048, 4096, 8192))


@claim(
    "dfa3d", "2307.12972", says="Depth interpolated pixel by pixel is the same as the volume of features.",
    source="abstract: mathematically equivalent implementation", evidence="identity", value="largest difference",
    at_most=1e-12,
)  # fmt: skip
def dfa3d_factorised() -> Found:
    """500 queries of 8 points in and around images of 12 by 16 pixels and 20 bins, in float64."""
    generator = torch.Generator().manual_seed(0)
    draw: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    tensors = (
        torch.randn(2, 12, 16, 4, 8, **draw), torch.randn(2, 12, 16, 20, **draw).softmax(-1),
        1.4 * torch.rand(2, 500, 4, 8, 3, **draw) - 0.2, torch.rand(2, 500, 4, 8, **draw),
    )  # fmt: skip
    volume = deformable_attention_3d(*tensors, impl="reference")
    ways = [way for way in available_implementations("deformable_attention_3d") if way != "triton"]
    found = {way: (deformable_attention_3d(*tensors, impl=way) - volume).abs().max().item() for way in ways}
    return Found(max(found.values()), found)


@claim(
    "dfa3d", "2307.12972", says="The volume of features is never held.",
    source="abstract: memory efficiency", evidence="cost", value="times as large a tensor by the definition",
    at_least=10.0,
)  # fmt: skip
def dfa3d_memory() -> Found:
    """The largest tensor of a call at the sizes of the authors' test: 6 images of 116 by 200 pixels, 256 channels, 112
    bins, 9502 queries of 8 points; without memory."""
    with torch.device("meta"):
        tensors = (
            torch.empty(6, 116, 200, 8, 32), torch.empty(6, 116, 200, 112), torch.empty(6, 9502, 8, 8, 3),
            torch.empty(6, 9502, 8, 8),
        )  # fmt: skip
    largest = {}
    for name, way in (("volume", reference), ("factorised", factorised)):
        with _Largest() as seen:
            way.forward(*tensors)
        largest[name] = seen.numbers
    return Found(largest["volume"] / largest["factorised"], {"numbers of the largest tensor": largest})


@claim(
    "dfa3d", "2307.12972", says="Features lifted by depth tell more than features on the image plane.",
    source="abstract: consistent improvement", evidence="trained",
    value="intersection over union gained over 2D attention", at_least=0.01, quick=False, limit=900,
)  # fmt: skip
def dfa3d_depth() -> Found:
    """dfa3d_nano for 250 updates of 16 generated scenes, its twin that reads on the image plane (both learn depth), and
    the first with the true depth, on 100 other scenes."""
    data = CamerasDataModule()
    data.setup()
    lifted, flat = (_learned(data, lift) for lift in (True, False))
    images, targets = data.sources["val"].fetch(torch.arange(100), 0)
    true = torch.nn.functional.one_hot(targets["depth"] + 1, data.num_bins + 1)[..., 1:].float()
    with torch.no_grad():
        found = {
            "lifted": _overlap(lifted(images), targets), "2D": _overlap(flat(images), targets),
            "true depth": _overlap(lifted(images, true), targets),
        }  # fmt: skip
    return Found(found["lifted"] - found["2D"], found)


def _learned(data: CamerasDataModule, lift: bool) -> Any:
    torch.manual_seed(0)
    model: Any = zoo.create_model("dfa3d_nano", lift=lift).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=250)
    for update in range(250):
        images, targets = data.sources["train"].fetch(torch.arange(16) + 16 * update, 0)
        optimizer.zero_grad()
        logits, depth = model(images, return_depth=True)
        occupancy_loss(logits, depth, targets, 0.5).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _overlap(logits: torch.Tensor, targets: dict[str, torch.Tensor]) -> float:
    found, wanted = logits > 0, targets["occupancy"] > 0
    return ((found & wanted).sum() / (found | wanted).sum()).item()


class _Largest(TorchDispatchMode):
    """Numbers of the largest tensor that is made inside the block."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        made = [t for t in (found if isinstance(found, tuple | list) else (found,)) if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *(t.numel() for t in made if not t._is_view())])
        return found

"""Time and memory: on this machine, or what a training step keeps."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.benchmarks import resolution
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.common import MIB, fitted_exponent, interleaved, medians
from zoo.benchmarks.peers import Side
from zoo.registry import lookup
from zoo.vision.patches import plan
from zoo.vision.pcdarts_search import Supernet, SupernetConfig


def kept_bytes(model: Callable[[Tensor], Any], x: Tensor) -> int:
    """What the forward pass keeps for the backward pass, a module's parameters aside."""
    owned = {id(p.untyped_storage()) for p in model.parameters()} if isinstance(model, torch.nn.Module) else set()
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in owned:
            kept[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(storage.nbytes() for storage in kept.values())


@claim(
    "revunet3d", "2104.09648", says="Reversible blocks are computed again backwards: training memory is flat in depth.",
    source="section 3: activations of a sequence of reversible blocks are not stored", evidence="cost",
    value="times as much kept with eight blocks as with one", at_least=1.0, at_most=1.0,
)  # fmt: skip
def revunet3d_memory_over_depth() -> Found:
    """Bytes that revunet3d_nano keeps of a volume of 16 voxels a side, with 1 to 8 blocks a level; stored beside it."""
    kept: dict[str, dict[int, int]] = {"reversible": {}, "stored": {}}
    for name, found in kept.items():
        for depth in (1, 2, 4, 8):
            model: Any = zoo.create_model("revunet3d_nano", depth=depth, reversible=name == "reversible")
            found[depth] = kept_bytes(model, torch.randn(1, 1, 16, 16, 16))
    return Found(kept["reversible"][8] / kept["reversible"][1], kept)


@claim(
    "revunet3d", "2104.09648", says="At a given memory the volumes may be up to three times as large.",
    source="abstract: volumes up to 3 times as large", evidence="cost",
    value="times as much kept by the network that stores", at_least=3.0,
)  # fmt: skip
def revunet3d_memory() -> Found:
    """Bytes that the paper's network keeps of a volume of 128 voxels a side, counted without memory."""
    x = torch.empty(1, 4, 128, 128, 128, device="meta")
    kept = {}
    for name in ("reversible", "stored"):
        model: Any = zoo.create_model("revunet3d", device="meta", reversible=name == "reversible")
        kept[name] = kept_bytes(model, x)
    return Found(
        kept["stored"] / kept["reversible"], {name: f"{found / 2**30:.2f} GiB" for name, found in kept.items()}
    )


@claim(
    "mcunet", "2110.15352", says="Run patch by patch, a network's peak memory falls four to eight times.",
    source="abstract: 4 to 8 times for existing networks", evidence="cost", value="times as small, the least of two",
    at_least=4.0, at_most=8.0,
)  # fmt: skip
def mcunet_patches() -> Found:
    """Peak of the plans for MobileNetV2 at images of 144 and 224 pixels: whole, and three stages by 4 and 5 patches."""
    found = {}
    for size, grid in ((144, 4), (224, 5)):
        model: Any = zoo.create_model("mbv2_w035", img_size=size)
        model = model.fuse()
        found[size] = plan(model).peak / plan(model, 3, grid).peak
    return Found(min(found.values()), {"times as small, by pixels": found})


@claim(
    "pcdarts", "1907.05737",
    says="A search in which a quarter of the channels is mixed takes a fraction of the memory.",
    source="section 3.1: K = 4 lets the batch grow about four times", evidence="cost",
    value="times as much kept with all channels", at_least=3.0,
)  # fmt: skip
def pcdarts_search_memory() -> Found:
    """Bytes that the supernet of CIFAR's search keeps of an image, with one in four channels mixed and with all."""
    kept = {}
    for share in (1, 4):
        sought = lookup("pcdarts_nano").configure()
        with torch.device("meta"):
            model = Supernet(SupernetConfig.of(sought, share))
        kept[share] = kept_bytes(model, torch.empty(8, sought.in_chans, *sought.image_shape, device="meta"))
    return Found(kept[1] / kept[4], {"bytes, by one in so many channels": kept})


@cache
def _high_resolution() -> dict[str, Any]:
    """Both claims of a process read it."""
    return resolution.measure("tiny", 1248, 1.0, least=1)


@claim(
    "vim", "2401.09417", says="On images of 1248 pixels Vim is 2.8 times as fast as DeiT.",
    source="abstract: 2.8 times, in batches on a GPU", evidence="measured", value="times as fast", at_least=2.8,
    quick=False, limit=1200,
)  # fmt: skip
def vim_time_at_high_resolution() -> Found:
    """Features of one image of 1248 pixels by vim_tiny and by timm's DeiT-Ti, its scores written out; fused beside
    it."""
    taken = medians(_high_resolution()["runs"])
    return Found(taken[resolution.PLAIN] / taken[resolution.OURS], {"seconds": taken})


@claim(
    "vim", "2401.09417", says="On images of 1248 pixels Vim takes 86.8 % less memory than DeiT.",
    source="abstract: 86.8 % less, in batches on a GPU", evidence="measured", value="share saved", at_least=0.868,
    quick=False, limit=1200,
)  # fmt: skip
def vim_memory_at_high_resolution() -> Found:
    """Peak memory of the same pass, above weights and image, in a process of its own."""
    peaks = _high_resolution()["bytes"]
    saved = 1 - peaks[resolution.OURS] / peaks[resolution.PLAIN]
    return Found(saved, {"MiB": {side: round(peak / MIB, 1) for side, peak in peaks.items()}})


def linear_time(family: str, paper: str) -> None:
    """Declare that reading takes time linear in the length."""

    def run() -> Found:
        model = zoo.create_model(f"{family}_nano").eval()
        calls = {str(n): partial(Side(model).forward, torch.randint(0, 256, (1, n))) for n in READ}
        seconds = [statistics.median(runs) for runs in interleaved(calls, budget=4.0)[0].values()]
        return Found(fitted_exponent(READ, seconds), {"seconds over length": dict(zip(READ, seconds, strict=True))})

    run.__name__ = f"{family}_time_over_length"
    run.__doc__ = f"Seconds of a pass of {family}_nano over {READ[0]} to {READ[-1]} tokens, all lengths in turns."
    claim(
        family, paper, says="Reading takes time linear in the length.", source="abstract: linear in the length",
        evidence="measured", value="exponent over the length", at_least=0.7, at_most=1.15,
    )(run)  # fmt: skip


READ = (1024, 2048, 4096, 8192)
linear_time("mamba", "2312.00752")
linear_time("mamba2", "2405.21060")


@claim(
    "mamba2 transformer", "2405.21060", says="A step takes as long after a long text as after a short one.",
    source="section 1: constant time a step, where attention's grows", evidence="measured",
    value="times as long after 8192 tokens as after 512", at_most=1.25,
)  # fmt: skip
def mamba2_time_of_a_step() -> Found:
    """Sixteen steps of mamba2_nano from the states after 512 and 8192 tokens, in turns; those of transformer_nano
    beside."""
    ratios = {name: _step_over_length(name) for name in ("mamba2_nano", "transformer_nano")}
    return Found(ratios["mamba2_nano"], ratios)


@torch.no_grad()
def _step_over_length(name: str) -> float:
    model: Any = zoo.create_model(name).eval()

    def steps(length: int) -> Callable[[], None]:
        state = model.init_state(1, length + 1000)
        model(torch.randint(0, 256, (1, length)), state, logits_to_keep=1)
        state.commit()
        return partial(_run, model, state)

    runs, _ = interleaved({str(length): steps(length) for length in (512, 8192)}, budget=2.0, shortest=0.01)
    short, long = (statistics.median(seconds) for seconds in runs.values())
    return long / short


@torch.no_grad()
def _run(model: Any, state: Any) -> None:
    """Sixteen steps, taken back."""
    for _ in range(16):
        model(torch.zeros(1, 1, dtype=torch.int64), state)
    state.rollback()

"""Models that make images: sizes, what a code keeps, how many passes an image takes."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch

from zoo.benchmarks import scales
from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts, total
from zoo.benchmarks.claims.tools import on_meta
from zoo.benchmarks.living import peak
from zoo.factory import create_model
from zoo.generative import merged_frames, sliced
from zoo.registry import lookup

counts(
    "dit_sizes", "dit", "2212.09748", says=SIZES, source="table 1: 33 M, 130 M, 458 M, 675 M",
    figure={"dit_s_2": "33M", "dit_b_2": "130M", "dit_l_2": "458M", "dit_xl_2": "675M"},
)  # fmt: skip
beyond(
    "dit_quality", "dit", "2212.09748", says="More operations make better images, whatever spends them.",
    source="abstract: FID of 2.27 on ImageNet by XL/2", why="It takes 7 million steps on ImageNet.",
)  # fmt: skip


@claim(
    "unet", "2312.04005", says="KOALA's U-Nets are up to 54 and 69 % smaller than SDXL's.",
    source="abstract", evidence="count", value="largest distance from a share, in points", at_most=1.0,
)  # fmt: skip
def koala_parameters() -> Found:
    """Parameters of koala_1b and koala_700m over those of sdxl_unet."""
    whole = total("sdxl_unet")
    saved = {name: 100 * (1 - total(name) / whole) for name in ("koala_1b", "koala_700m")}
    apart = max(abs(saved[name] - printed) for name, printed in (("koala_1b", 54), ("koala_700m", 69)))
    return Found(apart, {"saved, %": saved, "sdxl_unet": whole})


@claim(
    "wetok", "2508.05599", says="Codes of a few bits a patch compress images 24 to 768 times.",
    source="table of results: compression ratios of 24, 48, 192 and 768", evidence="count",
    value="largest relative distance from a ratio", at_most=0.0,
)  # fmt: skip
def wetok_compression() -> Found:
    """Bits of an image of 8 bits a channel over those of its codes, by the configurations."""
    ratios = {ratio: lookup(f"wetok_{ratio}").configure().compression_ratio for ratio in (24, 48, 192, 768)}
    return Found(max(abs(found / ratio - 1) for ratio, found in ratios.items()), {"ratios": ratios})


@claim(
    "next_scale", "2404.02905", says="An image takes a pass a scale, where one token at a time takes a pass a token.",
    source="section 3.2: n^2 tokens in as many passes as there are scales", evidence="count",
    value="passes over tokens", at_most=0.5,
)  # fmt: skip
def next_scale_passes() -> Found:
    """Scales of next_scale_nano over its tokens."""
    config = lookup("next_scale_nano").configure()
    return Found(len(config.scales) / sum(config.sizes), {"scales": len(config.scales), "tokens": sum(config.sizes)})


@claim(
    "next_scale", "2505.19602",
    says="Drafters and refiners are closer to the images of all keys than equal budgets of as many bytes.",
    source="table 1, 10 % of the keys of Infinity-8B: PSNR 23.25 dB beside 20.60 dB of SnapKV", evidence="trained",
    value="decibels above equal budgets, at half the tokens", at_least=0.0, quick=False, limit=600,
)  # fmt: skip
def scale_kv_distance() -> Found:
    """Of 200 figures by next_scale_shapes_nano, `zoo bench scales --shares 0.5`."""
    records, _ = scales.measured([0.5], 200, 0)
    psnr = {record["way"]: record["psnr"] for record in records}
    equal, ours = (psnr[way] for way in scales.WAYS)
    return Found(ours - equal, {"psnr": psnr, "bits": {record["way"]: record["bits"] for record in records}})


@claim(
    "video_dit", "2502.04363",
    says="Attention over means of two frames reads half the tokens, and over time a quarter of the pairs.",
    source="abstract and the section on temporal dimension token merging", evidence="cost",
    value="share of the tokens that attention reads", at_most=0.5,
)  # fmt: skip
def merged_tokens() -> Found:
    """Of one step of video_dit_nano, with frames merged over without, and the same of the pairs over time."""
    read: dict[bool, list[tuple[int, int]]] = {}
    for merged in (False, True):
        model = on_meta("video_dit_nano")
        x, seen = torch.empty(1, *model.config.input_shape, device="meta"), read.setdefault(merged, [])
        for block in (model.spatial[0], model.temporal[0]):

            def note(module: Any, inputs: Any, made: Any, seen: list[tuple[int, int]] = seen) -> None:
                seen.append((inputs[0].shape[0], inputs[0].shape[1]))

            block.attn.qkv.register_forward_hook(note)
        with merged_frames(model) if merged else nullcontext():
            model(x)
    tokens = {merged: sum(a * b for a, b in seen) for merged, seen in read.items()}
    pairs = {merged: seen[1][0] * seen[1][1] ** 2 for merged, seen in read.items()}
    share = pairs[True] / pairs[False]
    return Found(tokens[True] / tokens[False], {"tokens": tokens, "share of the pairs over time": share})


@claim(
    "video_dit", "2411.01171", says="Slices that go through a group of operations one after another need less memory.",
    source="abstract and example: AnimateDiff from 42 to 11 GB, SVD from 39.5 to 23.4 GB", evidence="cost",
    value="share of the peak that eight slices leave", at_most=0.6,
)  # fmt: skip
def sliced_peak() -> Found:
    """Bytes of all tensors that live at once in a pass over a clip of 16 frames of 32 x 32 pixels, by a diffusion
    transformer of width 128 and two pairs of blocks, sliced by blocks over whole; and sliced by attention and MLP
    alone."""
    torch.manual_seed(0)
    model: Any = create_model("video_dit_nano", img_size=32, frames=16, dim=128, depth=2).eval()
    x, t = torch.randn(1, *model.config.input_shape), torch.full((1,), 0.5)
    whole = peak(lambda: model(x, t))
    found: dict[str, dict[int, int]] = {"blocks": {}, "attention and MLP": {}}
    for name, bytes_of in found.items():
        for count in (2, 4, 8):
            with sliced(model, count, count, grouped=name == "blocks"):
                bytes_of[count] = peak(lambda: model(x, t))
    return Found(found["blocks"][8] / whole, {"whole": whole, "bytes by slices": found})


@claim(
    "cmd", "2403.14148", says="A clip is one frame and few numbers of motion.",
    source="section 3.2, 16 frames of 64 x 64 pixels: 8 x 16 x 64 numbers of motion and a frame", evidence="count",
    value="numbers of the latents over those of the clip", at_most=0.105,
)  # fmt: skip
def cmd_latents() -> Found:
    """Of cmd_64, by its configuration."""
    config = lookup("cmd_64").configure()
    whole = math.prod(config.input_shape)
    return Found(config.latent_size / whole, {"latents": config.latent_size, "clip": whole})

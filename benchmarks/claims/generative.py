"""Models that make images: sizes, what a code keeps, how many passes an image takes."""

from __future__ import annotations

from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts, total
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

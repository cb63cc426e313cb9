"""Vision-language models: sizes."""

from __future__ import annotations

from zoo.benchmarks.claims.declare import beyond
from zoo.benchmarks.claims.sizes import SIZES, counts
from zoo.benchmarks.claims.tools import on_meta, published


def tuned(name: str) -> int:
    """What ADEM-VL trains."""
    return sum(parameter.numel() for parameter in on_meta(name).tuned().values())


counts(
    "llava_sizes", "llava", "2310.03744", says=SIZES,
    source="transformers' LlavaForConditionalGeneration of the published config.json: 7,063,427,072 parameters",
    figure={"llava_1_5_7b": "7063427072"},
)  # fmt: skip
beyond(
    "llava_answers", "llava", "2310.03744", says="Two linear layers between CLIP and a language model suffice.",
    source="abstract: state of the art on 11 benchmarks", why="It takes 1.2 million images with texts and GPUs.",
)  # fmt: skip
published(
    "adem_vl_trained", "adem_vl", "2410.17779", "Parameters that are trained", tuned,
    {"adem_vl_7b": "4530432", "adem_vl_13b": "5449984"},
    says="Four to five million parameters are trained: no cross-attention has any.",
    source="the authors' code for LLaMA of 7 and 13 B, counted; the paper says 4.5 M and 5.5 M",
)  # fmt: skip
counts(
    "m2_encoder_sizes", "m2_encoder", "2401.15896", says=SIZES, source="abstract: M2-Encoder-10B",
    figure={"m2_encoder_10b": "10B"},
)  # fmt: skip

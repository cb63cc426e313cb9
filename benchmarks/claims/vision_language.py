"""Vision-language models: sizes, and operations of those that read less."""

from __future__ import annotations

import torch

from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts
from zoo.benchmarks.claims.tools import flops, on_meta, published
from zoo.generative import FeatureReuse
from zoo.layers.memory import ContextReweaving, LatentStates
from zoo.layers.tokens import ImagePredictor


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


def read_by(layers: int, tokens: int) -> int:
    """Operations of so many blocks of Llama 2 of 7 B parameters that read so many tokens."""
    block = on_meta("llama2_7b", depth=1).blocks[0]
    return layers * flops(block, torch.empty(1, tokens, 4096, device="meta"))


@claim(
    "llava", "2412.00876",
    says="Predictors that leave a fifth of an image's tokens save three quarters of its prefill.",
    source="abstract: about 75 % of the computation of the prefill", evidence="cost",
    value="share of the operations on 576 tokens of an image that is saved", at_least=0.725,
)  # fmt: skip
def dynamic_llava_prefill() -> Found:
    """LLaVA-1.5-7B, counted without memory: two blocks read all 576 tokens and thirty 115, and the predictor is run."""
    with torch.device("meta"):
        predictor = ImagePredictor(4096)
    judged = flops(predictor, torch.empty(1, 576, 4096, device="meta"))
    whole, left = read_by(32, 576), read_by(2, 576) + read_by(30, 115)
    details = {"all tokens": whole, "a fifth from the third layer on": left, "the predictor": judged}
    return Found(1 - (left + judged) / whole, details)


@claim(
    "llava", "2506.10100",
    says="Ten layers fewer, a fifth of the image's tokens and two steps of ten leave few operations.",
    source="table of SIMPLER: 28.9 % of the FLOPs with 22 layers and 56 tokens", evidence="cost",
    value="share of the operations that is left", at_most=0.289,
)  # fmt: skip
def efficient_vla_operations() -> Found:
    """Llama 2 of 7 B on 256 tokens of images and 20 of text, all in two of 22 blocks and 56 in the others, and DiT-B
    that draws 16 tokens in ten steps, every fifth computed; without CogACT's encoders and without leaving out numbers
    of the MLPs, counted without memory."""
    head = on_meta("dit_b_2", img_size=8)
    steps, reused = (flops(lambda s=s: head.sample(1, steps=10, shortcut=s)) for s in (None, FeatureReuse(every=5)))
    whole, left = read_by(32, 276), read_by(2, 276) + read_by(20, 76)
    details = {"language": {"whole": whole, "left": left}, "action head": {"whole": steps, "left": reused}}
    return Found((left + reused) / (whole + steps), details)


@claim(
    "transformer", "2502.02046", says="Weaving in what was kept of earlier chunks costs little.",
    source="abstract: overhead within acceptable thresholds; it has no figure, and the bound is ours", evidence="cost",
    value="operations beside those of the model", at_most=0.05,
)  # fmt: skip
def reweaving_operations() -> Found:
    """Llama 2 of 7 B on a chunk of 2,048 tokens, 64 kept of two layers, counted without memory; equations are ours."""
    with torch.device("meta"):
        layer = ContextReweaving(4096, captured=2, keep=64, num_heads=32)
        chunk, kept = torch.empty(1, 2048, 4096), LatentStates(torch.empty(1, 64, 2, 4096))
    added = flops(layer, chunk, kept) + flops(layer.remember, kept, [chunk, chunk])
    model = read_by(32, 2048) + 2 * 2048 * 4096 * 32000
    return Found(added / model, {"the model": model, "weaving and keeping": added})

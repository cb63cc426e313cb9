"""Diffusion models of few bits and few blocks: Q-Diffusion, ViDiT-Q, MixDQ and PAROAttention."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.benchmarks import diffusion
from zoo.benchmarks.claims.declare import Found, beyond, claim

PLAIN_ROUNDING = "W4, to nearest"


def measured(
    forms: Sequence[str], figure: str, models: Sequence[str] = diffusion.MODELS
) -> dict[str, dict[str, float]]:
    """Model -> form -> figure."""
    found = {name: diffusion.figures(diffusion.measure(name, forms))[name] for name in models}
    return {name: {form: held[form][figure] for form in forms} for name, held in found.items()}


def worst_ratio(found: dict[str, dict[str, float]], form: str, beside: str) -> Found:
    """The largest, over models, of one form's figure over another's."""
    return Found(max(held[form] / held[beside] for held in found.values()), found)


@claim(
    "dit unet", "2302.04304", says="Learnt rounding keeps in 4 bits what diffusion draws, plain rounding does not.",
    source="abstract: FID changes by 2.34 at most, by more than 100 with plain post-training quantisation",
    evidence="trained", value="distance of images over that of rounding to nearest, the larger of two models",
    at_most=0.1, quick=False, limit=600,
)  # fmt: skip
def q_diffusion_images() -> Found:
    """Relative squared distance of 40 digits drawn by dit_nano and unet_nano in 20 steps from the float model's of the
    same noise, weights of 4 bits and a scale a row."""
    forms = [PLAIN_ROUNDING, "W4, Q-Diffusion"]
    return worst_ratio(measured(forms, "images"), forms[1], forms[0])


@claim(
    "dit unet", "2302.04304", says="Calibration needs inputs of all times.",
    source="abstract: the distribution of outputs changes over the steps", evidence="trained",
    value="error of velocities over that of a calibration at the last step, the larger of two models", at_most=1.0,
    quick=False, limit=600,
)  # fmt: skip
def q_diffusion_times() -> Found:
    """Relative squared error over all times of dit_nano and unet_nano, weights of 4 bits and inputs of 8, calibrated on
    10 steps or on the last of them ten times."""
    forms = ["W4A8, Q-Diffusion, last time", "W4A8, Q-Diffusion"]
    return worst_ratio(measured(forms, "velocity"), forms[1], forms[0])


@claim(
    "unet", "2302.04304", says="What a U-Net joins is rounded better with scales for both sides.",
    source="abstract: inputs of shortcut layers have a bimodal distribution", evidence="trained",
    value="error of velocities over that of one scale", at_most=1.0, quick=False, limit=600,
)  # fmt: skip
def q_diffusion_split() -> Found:
    """unet_nano with inputs of 4 bits, where a scale matters most, and weights of 8."""
    forms = ["W8A4, Q-Diffusion, not split", "W8A4, Q-Diffusion"]
    return worst_ratio(measured(forms, "velocity", ["unet_nano"]), forms[1], forms[0])


@claim(
    "dit", "2406.02540", says="Weights and inputs of 8 bits draw what the float model draws.",
    source="abstract: lossless in W8A8", evidence="trained", value="relative squared distance of images",
    at_most=0.001, quick=False, limit=300,
)  # fmt: skip
def vidit_q_lossless() -> Found:
    """40 digits of dit_nano in 20 steps of the same noise."""
    found = measured(["W8A8, ViDiT-Q"], "images", ["dit_nano"])
    return Found(found["dit_nano"]["W8A8, ViDiT-Q"], found)


@claim(
    "dit", "2406.02540", says="Factors for each range of times balance channels better than one for all.",
    source="abstract: sensitive layers and timesteps hinder lower bits", evidence="trained",
    value="error of velocities over that of one range", at_most=1.0, quick=False, limit=300,
)  # fmt: skip
def vidit_q_ranges() -> Found:
    """dit_nano, weights of 4 bits and inputs of 8; two ranges keep each matrix twice."""
    forms = ["W4A8, ViDiT-Q, one range", "W4A8, ViDiT-Q"]
    return worst_ratio(measured(forms, "velocity", ["dit_nano"]), forms[1], forms[0])


@claim(
    "unet", "2405.17873", says="Bits by an integer programme change the model less than the same bits for all.",
    source="abstract: W4A8 with negligible degradation, where others fall short at W8A8", evidence="trained",
    value="error of velocities over that of 4 bits for all", at_most=1.0, quick=False, limit=900,
)  # fmt: skip
def mixdq_allocation() -> Found:
    """unet_nano, weights of 4 bits on average, a scale a row; other samples than those of the calibration."""
    forms = [PLAIN_ROUNDING, "W4, MixDQ"]
    return worst_ratio(measured(forms, "velocity", ["unet_nano"]), forms[1], forms[0])


@claim(
    "dit unet", "2506.16054", says="In the order of the axis that a head looks along, attention needs few blocks.",
    source="abstract: density of 20 to 30 % with the results of full attention", evidence="trained",
    value="share of the blocks that hold 95 % of the weights, the larger of two models", at_most=0.3, quick=False,
    limit=300,
)  # fmt: skip
def paro_density() -> Found:
    """Self-attention of dit_nano and unet_nano over 4 x 4 tokens in blocks of 4, beside the order as given."""
    forms = ["blocks, 95 %, as given", "blocks, 95 %"]
    found = measured(forms, "density")
    return Found(max(held[forms[1]] for held in found.values()), found)


beyond(
    "paro_speed", "dit", "2506.16054", says="Few blocks of few bits make video faster.",
    source="abstract: 1.9 to 2.7 times end to end", why="It takes a GPU and tens of thousands of tokens.",
)  # fmt: skip

"""Training with few numbers: ISS-P, PERP, PST, QuickSelection, and SCEdit's memory."""

from __future__ import annotations

import statistics

from zoo.benchmarks import sparse_training
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.common import fresh_peak


@claim(
    "simplenet", "2303.09650", says="Soft shrinkage ends above pruning at once and above hard thresholds.",
    source="abstract and README: outperforms one-shot magnitude and hard thresholds on three networks at 90 to 99 %",
    evidence="trained", value="decibels above the better of the two, mean of three seeds", at_least=0.0, quick=False,
    limit=600,
)  # fmt: skip
def iss_p_pictures() -> Found:
    """Digits of 8 x 8 pixels made from 4 x 4 by convolutions of which 95 % of the numbers go, in 300 steps, the first
    third shrinking."""
    found = {
        name: statistics.mean(sparse_training.enlarge(shrink, 300, seed)[0] for seed in range(3))
        for name, shrink in sparse_training.SHRINKS.items()
    }
    return Found(found["ISS-P"] - max(found["one-shot"], found["hard thresholds"]), found)


@claim(
    "transformer", "2312.15230", says="Masked low ranks, biases and norms retrain a pruned model as all weights do.",
    source="abstract: 0.27 to 0.35 % of the parameters match full retraining", evidence="trained",
    value="bits per byte over those after full retraining", at_most=1.01, quick=False, limit=900,
)  # fmt: skip
def perp_retrains() -> Found:
    """The bundled transformer_nano without 70 % of its numbers, 100 steps of 1,024 bytes, on held-out documents."""
    found = {name: sparse_training.retrain(name, 100)[0] for name in (sparse_training.PRUNED, "PERP, masked LoRA")}
    return Found(found["PERP, masked LoRA"] / found[sparse_training.PRUNED], found)


@claim(
    "transformer", "2205.11005", says="Scores and changes of low rank prune as well as training all weights does.",
    source="abstract: on par or better than earlier methods with 1.5 % of the parameters", evidence="trained",
    value="bits per byte over those of all weights, pruned by magnitude", at_most=1.01, quick=False, limit=900,
)  # fmt: skip
def pst_prunes() -> Found:
    """The bundled transformer_nano loses 70 % of its numbers, 100 steps of 1,024 bytes, on held-out documents."""
    found = {name: sparse_training.retrain(name, 100)[0] for name in (sparse_training.PRUNED, "PST")}
    return Found(found["PST"] / found[sparse_training.PRUNED], found)


@claim(
    "simplenet", "2012.00560", says="Links that evolve without labels gather at the columns that tell most.",
    source="abstract: the best trade-off of accuracy and cost among feature selections on eight data sets",
    evidence="trained", value="accuracy above the better of Laplacian score and chance", at_least=0.0, quick=False,
)  # fmt: skip
def quick_selection_accuracy() -> Found:
    """ExtraTrees on 32 columns of scikit-learn's digits beside 64 of noise, mean of three seeds, 10 epochs."""
    found = sparse_training.features(10)
    accuracy = found["accuracy"]
    return Found(accuracy["QuickSelection"] - max(accuracy["at random"], accuracy["Laplacian score"]), found)


@claim(
    "unet", "2312.11392", says="Tuning skip connections alone takes much less memory than LoRA.",
    source="the authors' documentation: 30 to 50 % less training memory than LoRA", evidence="measured",
    value="share of LoRA's memory that is saved", at_least=0.3, quick=False,
)  # fmt: skip
def scedit_memory() -> Found:
    """Peak of a training step in fresh processes, a U-Net of widths 64, 128 and 256 on four images of 32 pixels."""
    ways = ("LoRA", "SCEdit")
    peaks = {way: fresh_peak(sparse_training.peak_of_images, way) for way in ways}
    return Found(1 - peaks["SCEdit"] / peaks["LoRA"], peaks)

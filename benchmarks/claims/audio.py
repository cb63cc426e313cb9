"""Models of sound: sizes, and what a second microphone is worth."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

import zoo
from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.claims.sizes import SIZES, counts
from zoo.train.data import MicrophonesDataModule

counts(
    "deftan2_sizes", "deftan2", "2308.15777", says=SIZES, source="the authors' code: 3,997,988 parameters",
    figure={"deftan2": "4.00M"},
)  # fmt: skip
beyond(
    "deftan2_speech", "deftan2", "2308.15777", says="Speech in rooms is enhanced better than by larger models.",
    source="abstract", why="It takes recordings of speech and simulated rooms, which are downloads.",
)  # fmt: skip


@claim(
    "deftan2", "2308.15777", says="What the microphones hear differently tells voice from noise.",
    source="section 1: spatial information of several channels", evidence="trained",
    value="dB gained more with two microphones than with one", at_least=1.0, quick=False, limit=600,
)  # fmt: skip
def deftan2_microphones() -> Found:
    """deftan2_nano for 150 updates of 8 generated mixtures, and its twin that hears the first microphone alone."""
    gains = {mics: _gain(mics) for mics in (2, 1)}
    return Found(gains[2] - gains[1], {"dB gained with microphones": gains})


def _gain(mics: int) -> float:
    data = MicrophonesDataModule()
    data.setup()
    torch.manual_seed(0)
    model: Any = zoo.create_model("deftan2_nano", num_mics=mics)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for update in range(150):
        mixtures, voices = data.sources["train"].fetch(torch.arange(8) + 8 * update, 0)
        optimizer.zero_grad()
        (-si_sdr(model(mixtures[:, :mics]), voices).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    mixtures, voices = data.sources["val"].fetch(torch.arange(100), 0)
    with torch.no_grad():
        found = model.eval()(mixtures[:, :mics])
    return (si_sdr(found, voices) - si_sdr(mixtures[:, :1], voices)).mean().item()

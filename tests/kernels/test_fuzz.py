"""A short run of ``make fuzz``: every operation and implementation against loops written apart."""

from __future__ import annotations

import pytest
from fuzz.check import check
from fuzz.draws import DRAWS

import zoo.kernels
from zoo.kernels import available_implementations

SEEDS = range(100, 125)


@pytest.mark.parametrize("operation", DRAWS)
def test_draws_of(operation):
    fast = [impl for impl in available_implementations(operation) if impl != "triton"]
    assert not [sentence for seed in SEEDS for sentence in check(operation, seed, fast)]


def test_a_wrong_result_is_found(monkeypatch):
    """Off by one part in a hundred thousand of float32, or not a number."""
    right = zoo.kernels.rms_norm
    for wrong in (lambda y: y * (1 + 1e-5), lambda y: y + float("nan")):
        monkeypatch.setattr(zoo.kernels, "rms_norm", lambda *a, wrong=wrong, **k: wrong(right(*a, **k)))
        assert any(check("rms_norm", seed, ["reference"]) for seed in SEEDS)

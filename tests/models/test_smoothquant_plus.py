"""SmoothQuant+: a transform that changes no output, a search no worse than its start, and the same call again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers.quant import compressible, records
from zoo.quantize import Calibration
from zoo.quantize.calibration import largest_inputs
from zoo.quantize.folds import folds
from zoo.quantize.smoothquant_plus import factors


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(seed))


CALIBRATION = Calibration(tokens().split(2))


def with_outliers(name: str) -> Any:
    """Four channels of every norm before a block are large, and the matrices that read them small there."""
    model = zoo.create_model(name, pretrained=True).eval()
    linears = [key.removesuffix(".weight") for key in compressible(model) if key.startswith("blocks.")]
    channels = torch.ones(model.config.dim).index_fill(0, torch.tensor([3, 10, 40, 77]), 30.0)
    for fold in folds(model, linears, CALIBRATION):
        fold.apply(model, 1 / channels)
    return model


def change(model: Any, expected: Tensor) -> float:
    with torch.no_grad():
        return (model(tokens(1)) - expected).square().mean().item()


@pytest.mark.parametrize(("name", "count"), [("transformer_nano", 6), ("mamba2_nano", 4), ("falcon_h1_nano", 2)])
def test_the_transform_changes_no_output(name, count):
    model = zoo.create_model(name, dtype=torch.float64).eval()
    linears = [key.removesuffix(".weight") for key in compressible(model) if key.startswith("blocks.")]
    found = folds(model, linears, CALIBRATION)
    assert len(found) >= count
    with torch.no_grad():
        expected = model(tokens(1))
        largest = largest_inputs(model, {key for fold in found for key in fold.linears}, CALIBRATION)
        for fold in found:
            before = model.get_submodule(fold.linears[0]).weight.clone()
            fold.apply(model, factors(model, fold, largest, 0.5))
            assert not torch.equal(model.get_submodule(fold.linears[0]).weight, before)
        assert (model(tokens(1)) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_what_another_layer_reads_is_not_folded():
    """A norm whose output goes elsewhere as well is left alone."""
    model = zoo.create_model("transformer_nano").eval()
    linears = ["blocks.0.mixer.q_proj", "blocks.0.mixer.k_proj"]  # and v_proj, which may not take part
    assert folds(model, linears, CALIBRATION) == []
    assert len(folds(model, [*linears, "blocks.0.mixer.v_proj"], CALIBRATION)) == 1


def test_outliers_are_met_and_the_same_call_gives_the_same(tmp_path):
    expected = with_outliers("transformer_nano")(tokens(1)).detach()
    plain = change(zoo.quantize(with_outliers("transformer_nano"), bits=4), expected)
    call = {"method": "smoothquant_plus", "calibration": CALIBRATION, "steps": 4, "bits": 4}
    smooth = zoo.quantize(with_outliers("transformer_nano"), folder=tmp_path, **call)
    assert change(smooth, expected) < 0.7 * plain
    pieces = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    next(file for file in pieces if file.suffix == ".safetensors").unlink()  # as if it had been broken off there
    again = zoo.quantize(with_outliers("transformer_nano"), folder=tmp_path, **call)
    kept = [file.stat().st_mtime_ns == time for file, time in pieces.items() if file.suffix == ".safetensors"]
    assert sum(kept) == len(kept) - 1
    for name, record in records(smooth).items():
        assert torch.equal(record.codes, records(again)[name].codes)
    with pytest.raises(ValueError, match="call of another bits found: give it a folder of its own"):
        zoo.quantize(with_outliers("transformer_nano"), folder=tmp_path, **call | {"bits": 3})


def test_the_search_is_never_worse_than_no_scaling():
    """On the calibration itself, also where no scaling is best."""
    model = zoo.create_model("mamba2_nano", pretrained=True).eval()
    x = torch.cat(list(CALIBRATION.batches))
    with torch.no_grad():
        expected = model(x)
        found = zoo.quantize(
            zoo.create_model("mamba2_nano", pretrained=True).eval(), "smoothquant_plus",
            calibration=CALIBRATION, steps=1, bits=3,
        )  # fmt: skip
        plain = zoo.quantize(zoo.create_model("mamba2_nano", pretrained=True).eval(), bits=3)
        assert (found(x) - expected).square().mean() <= (plain(x) - expected).square().mean() * 1.0001

"""Language models as ONNX, run by onnxruntime: whole sequences of other sizes than the example's, and step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import zoo

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
BOTH = ["mamba2", "transformer", "mamba", "falcon_h1", "deltanet", "gated_deltanet", "moe"]


def built(name: str) -> Any:
    torch.manual_seed(0)
    options = {} if name in ("longconv_nano", "routing_nano") else {"depth": 1}
    model: Any = zoo.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in BOTH[:1])) for f in BOTH])
@torch.no_grad()
def test_step_by_step(family, tmp_path):
    """From an empty state on: recurrent states, and caches that grow."""
    model, tokens = built(f"{family}_nano"), torch.randint(0, 256, (2, 9))
    session = onnxruntime.InferenceSession(zoo.export_onnx(model, tmp_path / "step.onnx", step=True))
    state = {
        given.name: np.zeros([2, *(size if isinstance(size, int) else 0 for size in given.shape[1:])], np.float32)
        for given in session.get_inputs()
        if given.name != "tokens"
    }
    expected = model(tokens)
    for t in range(9):
        logits, *held = session.run(None, {"tokens": tokens[:, t : t + 1].numpy(), **state})
        state = dict(zip(state, held, strict=True))
        torch.testing.assert_close(torch.from_numpy(logits), expected[:, t : t + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] * (f not in BOTH[:1])) for f in BOTH if "deltanet" not in f],
)
@torch.no_grad()
def test_whole_sequences(family, tmp_path):
    model = built(f"{family}_nano")
    session = onnxruntime.InferenceSession(zoo.export_onnx(model, tmp_path / "whole.onnx"))
    for shape in ((2, 17), (1, 1), (4, 5)):
        tokens = torch.randint(0, 256, shape)
        (logits,) = session.run(["logits"], {"tokens": tokens.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(tokens), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_exported_says_so(tmp_path):
    with pytest.raises(ValueError, match="no step can be exported: the state, RoutingState, is more than its tensors"):
        zoo.export_onnx(built("routing_nano"), tmp_path / "step.onnx", step=True)
    with pytest.raises(ValueError, match="longconv_nano has no program for every length"):
        zoo.export_onnx(built("longconv_nano"), tmp_path / "whole.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_operation_without_an_onnx_form_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"deltanet_nano computes zoo\.delta_rule\.default, which has no ONNX form here"
    ):
        zoo.export_onnx(built("deltanet_nano"), tmp_path / "whole.onnx")

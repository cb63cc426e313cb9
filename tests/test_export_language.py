"""Language models as ONNX, run by onnxruntime: whole sequences of other sizes than the example's, and step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import zoo
from zoo.export.operators import decompositions
from zoo.export.systems import real_systems

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
BOTH = [  # the first one in every run, the others where there is time
    "mamba2", "transformer", "mamba", "falcon_h1", "deltanet", "gated_deltanet", "moe", "deepseek", "based", "longconv",
    "s4", "s4d", "routing", "rwkv7", "gla", "retnet", "recurrent_gemma", "lfm2", "zamba2", "qwen3_next", "lizard",
]  # fmt: skip

MIXED = ("longconv", "routing", "based", "recurrent_gemma", "lfm2", "zamba2", "qwen3_next")  # blocks of several kinds


def built(name: str) -> Any:
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, **({} if name.removesuffix("_nano") in MIXED else {"depth": 1})).eval()
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
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    state = {
        given.name: np.zeros([2, *(n if isinstance(n, int) else 0 for n in given.shape[1:])], kinds[given.type])
        for given in session.get_inputs()
        if given.name != "tokens"
    }
    expected = model(tokens)
    for t in range(9):
        logits, *held = session.run(None, {"tokens": tokens[:, t : t + 1].numpy(), **state})
        state = dict(zip(state, held, strict=True))
        torch.testing.assert_close(torch.from_numpy(logits), expected[:, t : t + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f not in BOTH[:1])) for f in BOTH])
@torch.no_grad()
def test_whole_sequences(family, tmp_path):
    model = built(f"{family}_nano")
    session = onnxruntime.InferenceSession(zoo.export_onnx(model, tmp_path / "whole.onnx"))
    for shape in ((2, 17), (1, 1), (4, 5)):
        tokens = torch.randint(0, 256, shape)
        (logits,) = session.run(["logits"], {"tokens": tokens.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(tokens), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_exported_says_so(tmp_path):
    for family, router in (("mod", "TokenRouter"), ("mor", "ExpertChoice")):
        for step in (False, True):
            message = f"{family}_nano has no program: how many tokens go through its blocks is what {router} finds"
            with pytest.raises(ValueError, match=message):
                zoo.export_onnx(zoo.create_model(f"{family}_nano"), tmp_path / "file.onnx", step=step)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_operation_without_an_onnx_form_is_named(tmp_path, monkeypatch):
    table = {key: value for key, value in decompositions().items() if "rope" not in str(key)}
    monkeypatch.setattr("zoo.export.decompositions", lambda: table)
    with pytest.raises(ValueError, match=r"transformer_nano computes zoo\.rope\.default, which has no ONNX form here"):
        zoo.export_onnx(built("transformer_nano"), tmp_path / "whole.onnx")


@pytest.mark.parametrize("name", ["s4_nano", "s4d_nano"])
@torch.no_grad()
def test_state_spaces_in_real_numbers_are_those_in_complex_ones(name):
    """A step of the loop that stands in the file, against the layers' own kernels; and nothing stays behind."""
    model = built(name).double()
    tokens, mixer = torch.randint(0, 256, (2, 1)), model.blocks[0].mixer
    state, own = model.init_state(2), model.init_state(2)
    for held in (state, own):
        held[0].x = torch.randn(held[0].x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, keys = model(tokens, own), set(vars(mixer))
    with real_systems(model):
        torch.testing.assert_close(model(tokens, state), expected)
    torch.testing.assert_close(state[0].x, own[0].x)
    assert set(vars(mixer)) == keys and "system" not in dict(mixer.named_children())

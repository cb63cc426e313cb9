"""Lyapunov exponents of Mamba, how far runs come apart, and LoRA on the matrices that make its recurrences."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo

NAMES = ["mamba_nano", "mamba2_nano"]
close = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-9)


def built(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, depth=2, dtype=torch.float64, **options).eval()


def tokens(length: int, rows: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 256, (rows, length))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_change_of_the_state_fades_at_the_exponents_rate(name):
    """The rest of a text from two states: they differ by exp(lambda T) times what they did, in each channel."""
    model, x = built(name), tokens(30, 1)
    found = zoo.lyapunov_exponents(model, x)
    states = [model.init_state(1) for _ in range(2)]
    change = torch.randn_like(states[1][0].ssm)
    states[1][0].ssm = change
    for state in states:
        model(x, state)
    rates = found["blocks.0.mixer"]
    expected = (30 * rates).exp() if rates.dim() == 2 else (30 * rates).exp()[:, None, None]
    close(states[1][0].ssm - states[0][0].ssm, expected * change)


@pytest.mark.parametrize("name", [*NAMES, "jamba_nano", "bamba_nano"])
def test_no_weights_have_a_positive_exponent(name):
    model: Any = zoo.create_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    exponents = zoo.lyapunov_exponents(model, tokens(20))
    assert exponents and all((rates <= 0).all() for rates in exponents.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", [{"dtype": torch.bfloat16}, {"noise": 1e-3}], ids=["bfloat16", "noise"])
def test_runs_stay_together_over_a_long_text(name, other):
    """Of trained weights, over four times the length trained on: the end deviates no more than the beginning."""
    model: Any = zoo.create_model(name, pretrained=True)
    text = torch.tensor([list(("The states of two runs stay as close as they were. " * 21).encode()[:1024])])
    found = zoo.deviation(model, text, **other)[0]
    assert found.shape == (1024,) and found.min() > 0
    assert found[-512:].mean() < 1.5 * found[:512].mean() < 0.3


def test_runs_that_do_not_differ_are_refused():
    with pytest.raises(ValueError, match="nothing would differ"):
        zoo.deviation(built("mamba_nano"), tokens(8))
    with pytest.raises(ValueError, match="TransformerLanguageModel has no Mamba"):
        zoo.lyapunov_exponents(zoo.create_model("transformer_nano"), tokens(8))


@pytest.mark.parametrize("ssm", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_lora_on_what_makes_the_recurrence(name, ssm):
    """Nothing at first; then one A for all parts of a matrix, of which every adapter learns; merged as it was."""
    model, x = built(name), tokens(12)
    expected, before = model(x), {key: t.clone() for key, t in model.state_dict().items()}
    assert torch.equal(zoo.adapt(model, "mamba_lora", rank=3, ssm=ssm)(x), expected)
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    own = {key.rsplit(".", 1)[-1] for key in learning if "lora_" not in key}
    assert own == ({"A_log", "D", "dt_bias" if name == "mamba2_nano" else "bias"} if ssm else set())
    parts = {"in_proj", "x_proj"} if name == "mamba_nano" else {"in_proj"}
    assert {key.split(".lora_")[0].rsplit(".", 1)[-1] for key in learning if "lora_" in key} == parts
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(x, labels=x).backward()
        optimizer.step()
    assert all(model.get_parameter(key).grad.any() for key in learning)
    learnt = model(x)
    close(zoo.merge_adapter(model)(x), learnt)
    assert not torch.allclose(learnt, expected) and model.state_dict().keys() == before.keys()
    change = model.mixers[0].in_proj.weight - before["blocks.0.mixer.in_proj.weight"]
    whole, first = (torch.linalg.matrix_rank(part, rtol=1e-9) for part in (change, change[: len(change) // 2]))
    assert first == whole == 3  # the parts share the rows

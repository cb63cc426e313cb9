"""LongConv as a language model: what a step sees, its state, sizes, initial values and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers import CausalAttention
from zoo.train.optim import build_optimizer

DIM, TAPS = 6, 9


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def small(**changes: Any) -> Any:
    """A nano model whose kernel is shorter than the test's tokens, with all its weights moved from their start."""
    sizes = {"vocab_size": 50, "dim": 16, "num_heads": 2, "kernel_length": TAPS}
    model: Any = zoo.create_model("longconv_nano", dtype=torch.float64, **sizes | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_a_step_sees_the_newest_taps_and_nothing_older():
    """Two blocks of two convolutions reach 4 (TAPS - 1) steps back, then rounding is all that is left."""
    model, tokens = small(depth=2, attention_layers=()), torch.randint(0, 50, (1, 60))
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 50
    change = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert change[: 4 * (TAPS - 1) + 1].min() > 1e-9 and change[4 * (TAPS - 1) + 1 :].max() < 1e-12


def test_state_holds_the_inputs_the_kernel_can_reach():
    model, sizes = small(attention_layers=(), depth=1), []
    state = model.init_state(3)
    for length in (4, 1, 3, 1, 30):
        model(torch.randint(0, 50, (3, length)), state)
        sizes.append(state.nbytes)
    assert sizes == [8 * 3 * 2 * 16 * steps for steps in (4, 5, TAPS - 1, TAPS - 1, TAPS - 1)]
    assert model.state_size(10**6) == model.state_size(TAPS - 1) == 2 * 16 * (TAPS - 1)


def test_decodes_past_the_kernel_after_packed_and_padded_prompts():
    model, tokens = small(), torch.randint(0, 50, (2, 40))
    seq_idx = torch.tensor([[-1] * 4 + [0] * 26 + [1] * 10, [0] * 2 + [4] * 28 + [1] * 10])
    whole = model(tokens, seq_idx=seq_idx)
    state = model.init_state(2)
    parts = [model(tokens[:, :5], state, seq_idx=seq_idx[:, :5])]
    parts += [model(tokens[:, t : t + 1], state) for t in range(5, 20)]
    parts += [model(tokens[:, 20:32], state, seq_idx=seq_idx[:, 20:32])]
    parts += [model(tokens[:, t : t + 1], state, seq_idx=seq_idx[:, t : t + 1]) for t in range(32, 36)]
    parts += [model(tokens[:, 36:], state)]
    close(torch.cat(parts, dim=1)[seq_idx >= 0], whole[seq_idx >= 0])


@pytest.mark.slow
def test_packed_training_compiles_as_one_graph():
    model, tokens = small(), torch.randint(0, 50, (2, 20))
    seq_idx = torch.tensor([[0] * 7 + [1] * 13, [0] * 16 + [2] * 4])
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(tokens, labels=tokens, seq_idx=seq_idx), model(tokens, labels=tokens, seq_idx=seq_idx))


def test_its_attention_has_no_positions():
    attention = CausalAttention(DIM, num_heads=1, rope_base=None).double()
    x = normal(1, 8, DIM)
    close(attention(x)[:, -1], attention(x[:, [3, 1, 6, 0, 2, 5, 4, 7]])[:, -1])
    assert not torch.allclose(*(CausalAttention(DIM, 1).double()(t)[:, -1] for t in (x, x[:, [1, 0, *range(2, 8)]])))


@pytest.mark.parametrize(
    ("name", "attention"), [("longconv_125m", [1, 8]), ("longconv_355m", [1, 13]), ("longconv_1_3b", [1, 13])]
)
def test_sizes_are_the_authors(name, attention):
    """A block has four projections and an MLP with biases, two norms, and two kernels of 2048 taps with D."""
    model: Any = zoo.create_model(name, device="meta")
    assert [i for i, mixer in enumerate(model.mixers) if isinstance(mixer, CausalAttention)] == attention
    dim, depth = model.config.dim, model.config.depth
    per_block = 12 * dim**2 + 5 * dim + 2 * dim
    convolutions = (depth - len(attention)) * (4 * dim + 2 * (2048 + 1) * dim)
    assert zoo.model_info(name).num_parameters == 50264 * dim + depth * per_block + convolutions + dim


def test_smoothing_in_frequency_stays_causal_and_reaches_the_model():
    model = small(smooth_freq=True, smooth_window=3, lam=0.0, attention_layers=())
    tokens = torch.randint(0, 50, (1, 30))
    changed = tokens.clone()
    changed[:, 20:] = (tokens[:, 20:] + 1) % 50
    close(model(changed)[:, :20], model(tokens)[:, :20])
    state = model.init_state(1)
    close(torch.cat([model(part, state) for part in tokens.split([12, 1, 17], dim=1)], dim=1), model(tokens))
    kernels = [(conv.taps(), conv.kernel) for conv in (model.blocks[0].mixer.conv, model.blocks[0].mixer.k_conv)]
    assert all((taps - kernel).abs().max() > 1e-3 for taps, kernel in kernels)


def test_kernels_are_exempt_from_weight_decay():
    model: Any = zoo.create_model("longconv_nano")
    groups = build_optimizer(model, "adamw", lr=1e-3, weight_decay=0.1).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name.split(".", 2)[2]: decay[id(p)] for name, p in model.blocks.named_parameters(prefix="blocks")}
    assert found["mixer.k_conv.kernel"] == found["mixer.conv.kernel"] == found["mixer.conv.D"] == 0
    assert found["mixer.q_proj.weight"] == 0.1


def test_the_mlp_has_the_tanh_form_of_gelu():
    assert zoo.create_model("longconv_nano").blocks[0].mlp.act.approximate == "tanh"


def test_initial_values_are_the_authors():
    model: Any = zoo.create_model("longconv_nano", depth=8, initializer_range=0.1, kernel_init="random")
    for name, parameter in model.blocks.named_parameters():
        if name.endswith(("proj.bias", "fc1.bias", "fc2.bias")):
            assert not parameter.any()
        elif name.endswith("fc2.weight") or name.startswith("1.mixer.out_proj"):  # of the attention
            assert parameter.std().item() == pytest.approx(0.1 / 4, rel=0.05)
        elif name.endswith(("proj.weight", "fc1.weight")):
            assert parameter.std().item() == pytest.approx(0.1, rel=0.05)
        elif name.endswith("kernel"):
            assert parameter.std().item() == pytest.approx(0.002, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_length": 0}, "kernel_length must be a positive integer, got 0"),
        ({"lam": -0.1}, "lam at least 0.*lam -0.1"),
        ({"smooth_window": 4}, "smooth_window odd.*smooth_window 4"),
        ({"kernel_dropout": 1.0}, r"kernel_dropout in \[0, 1\).*kernel_dropout 1.0"),
        ({"kernel_init": "hippo"}, "kernel_init must be one of random, double_exp, got 'hippo'"),
        ({"attention_layers": (1, 3)}, r"blocks in \[0, depth = 3\), got \(1, 3\)"),
        ({"num_heads": 5}, "num_heads must divide dim"),
    ],
)
def test_options_that_do_not_fit_say_the_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("longconv_nano", **changes)

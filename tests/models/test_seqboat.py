"""SeqBoat: the layer token by token, what is not active costs and changes nothing, padding, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.layers.depth import CausalWindow, SparseActivation, TwoSidedWindow

DIM, HIDDEN, QK, STATES = 10, 7, 6, 3
SUM = {"softmax": lambda logits: logits.softmax(0), "relu2": lambda logits: F.relu(logits).square()}


def mixer(attention: CausalWindow | TwoSidedWindow) -> Any:
    """With weights of order one, so that routers differ between tokens."""
    made = SparseActivation(DIM, attention, HIDDEN, QK, STATES).double()
    for name, parameter in made.named_parameters():
        if "temperature" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return made


def balanced(made: Any, x: Tensor) -> Any:
    """With half of the tokens active."""
    with torch.no_grad():
        u = made.hx_proj(F.silu(made.move(x)))
        made.hx_proj.bias[1] -= (u[..., 1] - u[..., 0]).quantile(0.5)
    return made


def averages(made: Any, x: Tensor, direction: int) -> Tensor:
    """x (T, D) by the recurrence, from the first token or from the last."""
    kernel = made.move.kernel
    delta, alpha, beta, gamma = (getattr(kernel, n)[direction] for n in ("delta", "alpha", "beta", "gamma"))
    p = torch.sigmoid(delta)
    h, outputs = torch.zeros(DIM, STATES).double(), []
    for u in x.flip(0) if direction else x:
        h = (1 - p * torch.sigmoid(alpha)) * h + p * beta * u[:, None]
        outputs.append((gamma * h).sum(1) / math.sqrt(STATES))
    return torch.stack(outputs).flip(0) if direction else torch.stack(outputs)


def turned(x: Tensor, position: int) -> Tensor:
    """Pairs of neighbours as complex numbers."""
    angle = position * 10000.0 ** -(torch.arange(0, QK, 2).double() / QK)
    return torch.view_as_real(
        torch.view_as_complex(x.view(-1, 2)) * torch.polar(torch.ones_like(angle), angle)
    ).flatten()


def token_by_token(made: Any, x: Tensor, bias: Any = None) -> Tensor:
    """x (T, D) -> (T, D); ``bias(i, j, rank of i, rank of j)`` for attention to both sides, which needs it."""
    moved = sum(averages(made, x, direction) for direction in range(made.move.kernel.directions)) + made.move.D * x
    m = F.silu(moved)
    u, y = made.hx_proj(m).split([2, DIM], -1)
    weight = (u / made.router.temperature.exp()).softmax(-1)
    active = [t for t in range(len(x)) if u[t, 1] > u[t, 0]]
    z, r, v = F.silu(made.mx_proj(m)).split([QK, HIDDEN, HIDDEN], -1)
    q, k = (z * made.gamma[i] + made.beta[i] for i in (0, 1))
    for rank, t in enumerate(active):
        if bias is None:
            seen = active[max(0, rank - made.attention.size + 1) : rank + 1]
            logits = [turned(q[t], t) @ turned(k[s], s) / math.sqrt(QK) for s in seen]
            shares = SUM["softmax"](torch.stack(logits))
        else:
            window = made.attention.window
            near = range(max(0, rank - window), min(len(active), rank + window + 1))
            seen = [active[other] for other in near]
            logits = [made.attention.scale * q[t] @ k[active[o]] + bias(t, active[o], rank, o) for o in near]
            shares = SUM[made.attention.activation](torch.stack(logits))
        read = sum(share * v[s] for share, s in zip(shares, seen, strict=True))
        y = y.index_add(0, torch.tensor([t]), (weight[t, 1] * made.h_proj(read * r[t]))[None])
    return y


@pytest.mark.parametrize("window", [3, 40])
def test_causal_is_the_layer_token_by_token(window):
    x = torch.randn(2, 37, DIM).double()
    made = balanced(mixer(CausalWindow(QK, window)), x)
    expected = torch.stack([token_by_token(made, row) for row in x])
    torch.testing.assert_close(made(x), expected, atol=1e-10, rtol=1e-10)
    assert abs(made.activity["density"] - 0.5) < 0.01


@pytest.mark.parametrize(
    ("window", "activation", "reach"), [(4, "softmax", None), (4, "relu2", 5), (40, "softmax", 63)]
)
def test_two_sided_is_the_layer_token_by_token(window, activation, reach):
    """Biases of distances among active tokens, or in the sequence, where the farthest share one."""
    x = torch.randn(2, 37, DIM).double()
    made = balanced(mixer(TwoSidedWindow(QK, window, activation, reach)), x)
    table, middle = made.attention.rel_pos_bias, made.attention.reach

    def bias(i: int, j: int, rank: int, other: int) -> Tensor:
        distance = other - rank if reach is None else max(-reach, min(reach, j - i))
        return table[middle + distance]

    expected = torch.stack([token_by_token(made, row, bias) for row in x])
    torch.testing.assert_close(made(x), expected, atol=1e-10, rtol=1e-10)


def leaning(made: Any, offset: float) -> Any:
    """With a bias of the router towards active tokens."""
    with torch.no_grad():
        made.hx_proj.bias[:2] = torch.tensor([-offset, offset])
    return made


def test_where_nothing_is_active_the_averages_alone_are_left():
    made, x = leaning(mixer(CausalWindow(QK, 4)), -100.0), torch.randn(2, 9, DIM).double().requires_grad_()
    y = made(x)
    torch.testing.assert_close(y, made.hx_proj(F.silu(made.move(x)))[..., 2:])
    y.sum().backward()
    assert made.activity["density"] == 0 and not made.mx_proj.weight.grad.any()


def test_only_active_tokens_teach_the_router():
    made = mixer(CausalWindow(QK, 4))
    u = torch.randn(1, 30, 2).double().requires_grad_()
    weight, active = made.router(u)
    (weight * active).sum().backward()
    assert torch.equal(u.grad.any(-1), active) and 0 < active.sum() < 30


def test_computation_falls_with_the_density():
    """Projections and attention are of the active tokens: those of all, less those of the rest."""
    made, x = mixer(CausalWindow(QK, 8)), torch.randn(1, 512, DIM).double()
    counts, densities = [], []
    for offset in (-100.0, -1.0, 0.0, 100.0):
        with FlopCounterMode(display=False) as counter:
            leaning(made, offset)(x)
        counts.append(counter.get_total_flops())
        densities.append(made.activity["density"].item())
    assert densities[0] == 0 and densities[-1] == 1 and sorted(densities) == densities
    share = [(count - counts[0]) / (counts[-1] - counts[0]) for count in counts]
    for found, density in zip(share, densities, strict=True):
        assert abs(found - density) < 0.05


@pytest.mark.parametrize("pair", [False, True])
def test_padding_changes_nothing_wherever_it_stands(pair):
    model: Any = zoo.create_model("seqboat_text_nano", dtype=torch.float64, pair=pair).eval()
    tokens = torch.randint(0, 15, (3, 2, 20) if pair else (3, 20))
    expected = model(tokens)
    for padded in (F.pad(tokens, (0, 13), value=-1), F.pad(tokens, (3, 1), value=-100)):
        torch.testing.assert_close(model(padded), expected, atol=1e-10, rtol=1e-10)


def test_decoding_holds_a_window_of_active_tokens():
    model: Any = zoo.create_model("seqboat_nano", dtype=torch.float64).eval()
    tokens, state = torch.randint(0, 256, (2, 90)), model.init_state(2)
    size = state.nbytes
    model(tokens, state)
    assert state.nbytes == size and model.state_size(90) == model.state_size(9)
    positions = state[0].parts[1].position
    assert ((positions >= 0).sum(1) > 0).all() and positions.shape == (2, 33)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("seqboat_nano", {"window": 0}, "window must be a positive integer"),
        ("seqboat_nano", {"temperature": 0.0}, "temperature must be above 0"),
        ("seqboat_text_nano", {"attention": "laplace"}, "activation must be 'softmax' or 'relu2', got 'laplace'"),
        ("seqboat_text_nano", {"norm": "batch"}, "norm must be one of layer, scale"),
        ("seqboat_pixel_nano", {"bidirectional": False}, "reads from both sides"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model(name, **options)

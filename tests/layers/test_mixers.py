"""The mixer contract, once for all mixers: parallel = recurrent, causal, nothing leaks, nothing overflows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cases.mixers import DIM, LENGTH, MIXERS, build
from zoo.layers import CausalAttention, Mamba2, Mixer
from zoo.layers.report import auxiliary_losses
from zoo.layers.state import State

REACH = {  # steps seen
    "sliding-window": 6, "sliding-window-narrow": 2, "sliding-window-wide": 6, "sliding-window-options": 6,
    "sliding-window-capped": 6, "sliding-window-sinks": 6, "lizard-window": 6, "gated-conv": 3, "gated-conv-narrow": 2,
    "gated-conv-double": 4, "h3-conv-short": 11, "h3-conv-one-tap": 1,
}  # fmt: skip
CHOOSES = ("attention-code-matched",)  # which of the steps seen, so that others may go unseen
# a Fourier transform of the row: causal up to its rounding
ROUNDING = dict.fromkeys(("h3-conv", "h3-conv-short", "h3-conv-one-tap"), 1e-12)


@pytest.fixture(params=MIXERS, ids=str)
def mixer(request) -> Mixer:
    return build(request.param)


def tokens(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randn(batch, length, DIM, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("max_length", [None, LENGTH])
def test_whole_equals_prefix_then_rest_equals_token_by_token(mixer, max_length):
    x = tokens()
    whole = mixer(x)
    for cuts in ([10, LENGTH], [1, 2, 20, LENGTH], list(range(1, LENGTH + 1))):
        state = mixer.init_state(2, max_length)
        parts = [mixer(x[:, a:b], state) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
        close(torch.cat(parts, dim=1), whole)


def test_causal(mixer, request):
    name = request.node.callspec.params["mixer"]
    x, reach = tokens().requires_grad_(), REACH.get(name, LENGTH)
    for t in (0, 7, LENGTH - 2):
        (gradient,) = torch.autograd.grad(mixer(x)[:, t].square().sum(), x)
        first = max(0, t + 1 - reach)
        rounding = ROUNDING.get(name, 0.0) * gradient.abs().max()
        felt = gradient[:, t if name in CHOOSES else first : t + 1].abs().sum(-1)
        assert felt.min() > rounding
        assert (torch.cat([gradient[:, :first], gradient[:, t + 1 :]], dim=1).abs() <= rounding).all()


def test_batch_invariant(mixer):
    x = tokens(3)
    close(mixer(x)[1:2], mixer(x[1:2]))


def test_packed_sequences_do_not_leak(mixer):
    x = tokens()
    cuts = [0, 4, 5, 18, LENGTH]
    seq_idx = torch.cat([torch.full((2, b - a), 9 - i) for i, (a, b) in enumerate(pairwise(cuts))], 1)
    separate = torch.cat([mixer(x[:, a:b]) for a, b in pairwise(cuts)], dim=1)
    close(mixer(x, seq_idx=seq_idx), separate)


def test_packed_sequences_split_anywhere_and_continue(mixer):
    """The state remembers which sequence it is in, and goes on with the last one."""
    x = tokens()
    seq_idx = torch.tensor([[0] * 6 + [1] * 10 + [2] * 13, [5] * 12 + [3] * 17])
    whole = mixer(x, seq_idx=seq_idx)
    for cut in (3, 6, 12, 15):
        state = mixer.init_state(2)
        first = mixer(x[:, :cut], state, seq_idx=seq_idx[:, :cut])
        second = mixer(x[:, cut:20], state, seq_idx=seq_idx[:, cut:20])
        rest = [mixer(x[:, t : t + 1], state) for t in range(20, LENGTH)]  # without ids: the present sequence
        close(torch.cat([first, second, *rest], dim=1), whole)


@pytest.mark.parametrize("padding", [1, 2, 11])
def test_left_padding_changes_nothing(mixer, padding):
    x = tokens()
    padded = torch.cat([100 * tokens(length=padding), x], dim=1)
    seq_idx = torch.tensor([[-1] * padding + [0] * LENGTH] * 2)
    close(mixer(padded, seq_idx=seq_idx)[:, padding:], mixer(x))
    state = mixer.init_state(2)
    first = mixer(padded[:, : padding + 1], state, seq_idx=seq_idx[:, : padding + 1])[:, padding:]
    rest = [mixer(x[:, t : t + 1], state) for t in range(1, LENGTH)]
    close(torch.cat([first, *rest], dim=1), mixer(x))


def test_state_reorders_and_resets(mixer):
    x, y = tokens(), tokens(length=5)
    state = mixer.init_state(2)
    mixer(x, state)
    state.reorder(torch.tensor([1, 1, 0]))
    expected = mixer(torch.cat([x, y], dim=1))[:, LENGTH:]
    repeated = mixer(y[[1, 1, 0]], state)
    close(repeated, expected[[1, 1, 0]])
    state = mixer.init_state(2)
    mixer(x, state, seq_idx=torch.zeros(2, LENGTH, dtype=torch.long))
    state.reset()
    close(mixer(y, state), mixer(y))


def test_state_crops_or_says_that_it_cannot(mixer):
    x = tokens()
    state = mixer.init_state(2)
    mixer(x, state)
    if type(state).crop is not State.crop:
        state.crop(10)
        close(mixer(x[:, 10:], state), mixer(x)[:, 10:])
    else:
        with pytest.raises(ValueError, match="recurrent and cannot be cropped to 10"):
            state.crop(10)


def test_state_size_is_what_the_state_holds(mixer):
    state = mixer.init_state(1, max_length=LENGTH)
    mixer(tokens(1), state)
    held = sum(tensor.numel() for name, tensor in state.tensors() if name != "seq_idx")
    assert mixer.state_size(LENGTH) == held
    assert state.nbytes == held * 8


def test_every_parameter_gets_a_gradient(mixer):
    output = mixer(tokens()).square().sum()
    (output + sum(auxiliary_losses(mixer).values())).backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_and_close_in_low_precision(mixer, dtype):
    x = tokens()
    exact = mixer(x)
    low = mixer.to(dtype)(x.to(dtype))
    assert low.dtype == dtype and torch.isfinite(low).all()
    assert (low.double() - exact).norm() / exact.norm() < 16 * torch.finfo(dtype).eps


def test_wrong_sizes_say_the_rule():
    with pytest.raises(ValueError, match="head_dim must divide the inner width"):
        Mamba2(DIM, head_dim=7)
    with pytest.raises(ValueError, match="num_heads must divide dim"):
        CausalAttention(DIM, num_heads=5)
    mixer = CausalAttention(DIM, num_heads=4)
    state = mixer.init_state(1, max_length=4)
    with pytest.raises(ValueError, match="at most 4 tokens, 0 are in it and 5 more"):
        mixer(torch.randn(1, 5, DIM), state)

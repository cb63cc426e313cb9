"""Operations are counted by torch's own counter."""

from __future__ import annotations

import pytest
import torch

from cases import all_cases
from zoo.kernels import available_implementations, causal_conv1d, linear_cross_entropy, selective_scan, ssd
from zoo.kernels.flops import flop_counter


def counted(call, *tensors: torch.Tensor) -> tuple[int, int]:
    """FLOPs of the forward and of the backward."""
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    with flop_counter(display=False) as forward:
        output = call(*leaves)
    loss = (output[0] if isinstance(output, tuple) else output).sum()
    with flop_counter(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def test_counts_follow_the_recurrences():
    B, T, D, N, H, P, W, V = 2, 10, 6, 4, 3, 5, 4, 11
    one, maps = torch.rand(B, T, D), (torch.rand(B, T, 1, N), torch.rand(B, T, 1, N))
    assert counted(selective_scan, one, one.clone(), -torch.rand(D, N), *maps) == (
        7 * B * T * D * N,
        14 * B * T * D * N,
    )
    heads = torch.rand(B, T, H, P), torch.rand(B, T, H), -torch.rand(H)
    fresh = tuple(t.detach().clone() for t in maps)
    assert counted(ssd, *heads, *fresh) == (5 * B * T * H * P * N, 10 * B * T * H * P * N)
    assert counted(causal_conv1d, torch.rand(B, T, D), torch.rand(D, W)) == (2 * B * T * D * W, 4 * B * T * D * W)
    labels = torch.randint(0, V, (T,))
    assert counted(linear_cross_entropy, torch.rand(T, D), torch.rand(V, D), labels) == (6 * T * D * V, 0)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in all_cases()])
def test_every_operation_is_counted(case):
    """A forward costs something and a backward no less; without gradients nothing is counted twice."""
    inputs = {n: t.requires_grad_(t.is_floating_point()) for n, t in case.inputs(1, 40, torch.float32).items()}
    with flop_counter(display=False) as forward:
        found = case.call(impl=available_implementations(case.operation)[0], **inputs)
    output = found[0] if isinstance(found, tuple) else found
    with flop_counter(display=False) as backward:
        torch.autograd.grad(output.square().sum(), [t for t in inputs.values() if t.requires_grad], allow_unused=True)
    assert forward.get_total_flops() > 0
    assert case.operation == "linear_cross_entropy" or backward.get_total_flops() >= forward.get_total_flops()

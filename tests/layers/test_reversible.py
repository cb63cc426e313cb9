"""Reversible layers: inverse, gradients beside the stored version, random numbers, autocast, and memory over depth."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from zoo.kernels.flops import flop_counter
from zoo.layers import ReversibleSequence
from zoo.layers.conv import MBConv3d


def bottlenecks(depth: int, dim: int = 8, drop_rate: float = 0.0) -> ReversibleSequence:
    """``depth`` blocks of two branches, opened: a new MBConv3d gives zeros."""
    branches = [MBConv3d(dim // 2, 2, num_groups=2, drop_rate=drop_rate) for _ in range(2 * depth)]
    for branch in branches:
        nn.init.normal_(branch.norm3.weight)
    return ReversibleSequence(branches)


def stored(sequence: ReversibleSequence) -> ReversibleSequence:
    """A copy that keeps its activations."""
    twin = copy.deepcopy(sequence)
    twin.recompute = False
    return twin


def gradients(sequence: ReversibleSequence, x: Tensor) -> list[Tensor]:
    """Of the sum of the weighted outputs, for the input and for each parameter."""
    x = x.detach().requires_grad_()
    torch.manual_seed(3)
    y = sequence(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [x.grad, *(parameter.grad for parameter in sequence.parameters())]


def close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-10) -> None:
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def saved_bytes(sequence: ReversibleSequence, x: Tensor) -> int:
    """Memory of what the forward pass keeps for the backward pass, parameters aside."""
    owned = {parameter.data_ptr() for parameter in sequence.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in owned:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sequence(x)
    return sum(kept.values())


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made within it have taken at once, ``peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.live, self.peak = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.count, result)
        return result

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen[storage] = True
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.release, storage.nbytes())

    def release(self, nbytes: int) -> None:
        self.live -= nbytes


def peak_bytes(sequence: ReversibleSequence, x: Tensor) -> int:
    """Of a forward and backward pass, gradients of parameters aside."""
    with PeakMemory() as memory:
        sequence(x).sum().backward()
    return memory.peak - sum(parameter.nbytes for parameter in sequence.parameters())


def test_a_block_is_the_two_sums_of_the_papers():
    f, g = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.randn(5, 6)
    x1, x2 = x.chunk(2, dim=1)
    y1 = x1 + f(x2)
    y2 = x2 + g(y1)
    torch.testing.assert_close(ReversibleSequence([f, g])(x), torch.cat([y1, y2], dim=1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_inverse(dtype, tolerance):
    sequence = bottlenecks(depth=8).to(dtype)
    x = torch.randn(2, 8, 4, 3, 5, dtype=dtype)
    y = sequence(x)
    assert (y - x).abs().max() > 1
    torch.testing.assert_close(sequence.inverse(y), x, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("num_branches", [1, 2, 7])
def test_gradients_are_those_of_the_stored_version(num_branches):
    sequence = bottlenecks(depth=4).double()
    sequence.branches = sequence.branches[:num_branches]
    twin, x = stored(sequence), torch.randn(2, 8, 4, 3, 5, dtype=torch.float64)
    assert torch.equal(sequence(x), twin(x))
    close(gradients(sequence, x), gradients(twin, x))


def test_dropout_is_replayed_and_the_stream_of_random_numbers_goes_on():
    sequence, x = bottlenecks(depth=2, drop_rate=0.5).double().train(), torch.randn(2, 8, 4, 4, 4, dtype=torch.float64)
    after = []
    found = []
    for version in (sequence, stored(sequence)):
        found.append(gradients(version, x))
        after.append(torch.rand(3))
    close(*found)
    assert torch.equal(*after)
    assert not torch.equal(sequence(x), sequence(x))


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_entered_again(inside):
    """Also where the backward pass runs inside it, and where the weights' casts might be taken from its cache."""
    seen: list[torch.dtype] = []

    class Spy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            y = super().forward(input)
            seen.append(y.dtype)
            return y

    sequence = ReversibleSequence([Spy(4, 4), Spy(4, 4)])
    found: list[list[Tensor]] = []
    for version in (sequence, stored(sequence)):
        x = torch.linspace(-1, 1, 24).view(3, 8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = version(x).square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append([x.grad, *(parameter.grad for parameter in version.parameters())])
    assert set(seen) == {torch.bfloat16} and len(seen) == 4 + 2
    close(*found, tolerance=1e-2)


def test_low_precision_is_summed_in_float32():
    sequence = bottlenecks(depth=8).bfloat16()
    x = torch.randn(1, 8, 4, 4, 4).bfloat16()
    assert sequence(x).dtype == torch.bfloat16
    found, expected = gradients(sequence, x), gradients(stored(sequence), x)
    error = max((a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True))
    assert error < 0.05


def test_memory_does_not_grow_with_depth():
    x = torch.randn(1, 8, 8, 8, 8)
    kept = {depth: saved_bytes(bottlenecks(depth), x) for depth in (1, 4, 16)}
    assert set(kept.values()) == {x.nbytes}
    linear = [saved_bytes(stored(bottlenecks(depth)), x) for depth in (1, 4, 16)]
    assert linear[0] > 5 * x.nbytes and linear[2] - linear[1] == 4 * (linear[1] - linear[0])


def test_peak_memory_of_a_training_step_does_not_grow_with_depth():
    x = torch.randn(1, 8, 12, 12, 12)
    flat = [peak_bytes(bottlenecks(depth), x) for depth in (2, 4, 16)]
    linear = [peak_bytes(stored(bottlenecks(depth)), x) for depth in (2, 4, 16)]
    assert max(flat) < 1.01 * min(flat)
    assert linear[2] - linear[1] > 5.9 * (linear[1] - linear[0]) and linear[2] > 15 * flat[2]


def test_recomputation_costs_one_more_forward_pass():
    sequence, x, flops = ReversibleSequence([nn.Linear(64, 64, bias=False)] * 2), torch.randn(9, 128), []
    for version in (sequence, stored(sequence)):
        with flop_counter(display=False) as counter:
            gradients(version, x)
        flops.append(counter.get_total_flops())
    assert flops[0] * 3 == flops[1] * 4


def test_shared_frozen_and_unused_parameters():
    shared, frozen, unused = (nn.Linear(3, 3).double() for _ in range(3))
    frozen.requires_grad_(False)
    shared.register_module("unused", unused)
    sequence, x = ReversibleSequence([shared, frozen, shared]), torch.randn(4, 6, dtype=torch.float64)
    twin = stored(sequence)
    for version in (sequence, twin):
        gradients(version, x)
    close([shared.weight.grad], [twin.branches[0].weight.grad])
    assert frozen.weight.grad is None and not unused.weight.grad.any()


def test_batch_norms_update_their_statistics_once():
    sequence = ReversibleSequence([nn.BatchNorm1d(3), nn.BatchNorm1d(3)])
    twin, x = stored(sequence), torch.randn(9, 6)
    for version in (sequence, twin):
        gradients(version, x)
    for one, other in zip(sequence.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one, other)


def test_changing_a_parameter_before_the_backward_pass_is_an_error():
    sequence = ReversibleSequence([nn.Linear(3, 3)])
    y = sequence(torch.randn(2, 6)).sum()
    with torch.no_grad():
        sequence.branches[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_functional_gradients_are_those_of_autograd():
    sequence, x = bottlenecks(2).double(), torch.randn(1, 8, 4, 4, 4, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(sequence, parameters, (x,)).square().sum()

    parameters = dict(sequence.named_parameters())
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    close(list(grad(loss)(parameters).values()), list(expected))


def test_without_gradients_nothing_is_kept():
    sequence, x = bottlenecks(depth=1), torch.randn(1, 8, 2, 2, 2)
    with torch.no_grad():
        assert sequence(x).grad_fn is None
    torch.testing.assert_close(sequence(x).detach(), stored(sequence)(x).detach(), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bottlenecks(1)(torch.randn(1, 7, 2, 2, 2)), "must be even"),
        (lambda: bottlenecks(1).inverse(torch.randn(1, 7, 2, 2, 2)), "must be even"),
        (lambda: MBConv3d(4, kernel_size=2), "kernel_size must be odd, got 2"),
        (lambda: MBConv3d(4, num_groups=3), "num_groups must divide the channels: got 4 channels, num_groups 3"),
    ],
)
def test_errors(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()

"""S4 and S4D: the matrices, both modes, the kernels against dense recurrences, the memory of HiPPO, both directions."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

import zoo
from zoo.benchmarks.claims.identities import recalled
from zoo.layers.ssm import S4, S4D, hippo
from zoo.layers.ssm.s4 import S4Kernel
from zoo.layers.ssm.s4d import S4DKernel, bilinear, zero_order_hold
from zoo.train.optim import build_optimizer

DIM, STATE = 6, 8
LAYERS = {
    "s4": partial(S4, DIM, STATE, num_ssm=2),
    "s4-random": partial(S4, DIM, STATE, init=hippo.random_dplr),
    "s4d-zoh": partial(S4D, DIM, STATE, num_ssm=3),
    "s4d-bilinear": partial(S4D, DIM, STATE, init=hippo.diagonal_lin, discretisation=bilinear),
    "s4d-real": partial(S4D, DIM, STATE, init=hippo.diagonal_real),
}


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("d_state", "largest"),
    [(4, [4.603293, 0.556501]), (64, [1303.2738, 433.0308, 258.1522, 182.6204])],
)
def test_frequencies_of_hippo_legs(d_state, largest):
    """Those that the authors' code finds."""
    Lambda = hippo.legs_dplr(d_state).Lambda
    close(Lambda.real, torch.full_like(Lambda.real, -0.5))
    found = Lambda.imag.abs().sort(descending=True).values[: len(largest)]
    torch.testing.assert_close(found, torch.tensor(largest, dtype=torch.float64), atol=1e-4, rtol=1e-6)


def test_input_vector_of_hippo_legs_is_bounded():
    """Absolute values as the authors' code finds them: 40.75, 13.61, 8.19, ... become 2, small ones stay."""
    _, P, B = hippo.legs_dplr(64)
    largest_first = B.abs().flip(0)
    torch.testing.assert_close(largest_first[:6], torch.full((6,), 2.0).double(), atol=2e-4, rtol=0)
    expected = torch.tensor([0.7905, 0.7410, 0.6802, 0.5945], dtype=torch.float64)
    torch.testing.assert_close(largest_first[-4:], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(B[:4], 2**0.5 * P[:4])
    assert hippo.diagonal_legs(64).B.equal(B)


def test_diagonal_plus_low_rank_is_hippo_legs():
    """The transfer functions C (z - A)^-1 B agree for C = B^T, in which the basis drops out."""
    A, B = hippo.legs_matrix(16)
    Lambda, P, b = (torch.cat([t, t.conj()]) for t in hippo.legs_dplr(16, torch.inf))
    reduced = torch.diag(Lambda) - torch.outer(P, P.conj())
    for z in (0.3, 1.0, 7.0):
        dense = B @ torch.linalg.solve(z * torch.eye(16) - A, B)
        found = b.conj() @ torch.linalg.solve(z * torch.eye(16) - reduced, b)
        close(found, dense.to(found.dtype))


def dense_kernel(kernel: S4Kernel, length: int) -> Tensor:
    """C A^l B of the bilinear discretisation with dense matrices over all modes and their conjugates, (D, length)."""
    rows = []
    for d in range(kernel.dim):
        system = d % kernel.num_ssm
        Lambda, P, B, C = (
            torch.cat([t, t.conj()])
            for t in (
                torch.complex(-kernel.log_A_real[system].exp(), kernel.A_imag[system]),
                torch.view_as_complex(kernel.P[system]),
                torch.view_as_complex(kernel.B[system]),
                torch.view_as_complex(kernel.C[0, d]),
            )
        )
        A, dt, one = torch.diag(Lambda) - torch.outer(P, P.conj()), kernel.log_dt[d].exp(), torch.eye(len(Lambda))
        below = one - dt / 2 * A
        step = torch.linalg.solve(below, one + dt / 2 * A)
        x, row = torch.linalg.solve(below, dt * B), []
        for _ in range(length):
            row.append((C @ x).real)
            x = step @ x
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_cauchy_kernel_is_the_dense_recurrence(length):
    with torch.no_grad():
        kernel = S4Kernel(DIM, hippo.legs_dplr(STATE), num_ssm=2).double()
        close(kernel(length)[0], dense_kernel(kernel, length), 1e-8)


@pytest.mark.parametrize("discretisation", [zero_order_hold, bilinear])
def test_vandermonde_kernel_is_the_sum_of_powers(discretisation):
    with torch.no_grad():
        kernel = S4DKernel(DIM, hippo.diagonal_inv(STATE), discretisation=discretisation).double()
        A, dt = kernel.eigenvalues, kernel.dt
        if discretisation is zero_order_hold:
            step, entry = (dt * A).exp(), ((dt * A).exp() - 1) / A
        else:
            step, entry = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
        terms = kernel.output_vectors[0] * entry * kernel.input_vector
        expected = torch.stack([2 * (terms * step**power).real.sum(-1) for power in range(50)], dim=-1)
        close(kernel(50)[0], expected)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_convolution_and_recurrence_agree(name, dtype, tolerance):
    torch.manual_seed(0)
    layer = LAYERS[name]().to(dtype)
    x = torch.randn(2, 150, DIM, dtype=dtype)
    with torch.no_grad():
        whole, state = layer(x), layer.init_state(2)
        steps = torch.cat([layer(x[:, t : t + 1], state) for t in range(150)], dim=1)
    close(steps, whole, tolerance)


def test_hippo_remembers_what_random_matrices_forget():
    """A signal 100 steps ago, by states of 32 numbers, step sizes of 0.01 and the best linear readout."""
    torch.manual_seed(0)
    build = partial(S4Kernel, 1, dt_min=0.01, dt_max=0.01)
    best = recalled(build(hippo.legs_dplr(32)).double())
    random = [recalled(build(hippo.random_dplr(32)).double()) for _ in range(5)]
    assert best > 0.8 > 0.6 > max(random), (best, random)


@pytest.mark.parametrize("layer", [S4, S4D])
def test_bidirectional_reads_both_sides_and_has_no_state(layer):
    mixer = layer(DIM, STATE, bidirectional=True).double()
    x = torch.randn(1, 20, DIM, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[:, 9].square().sum(), x)
    assert (gradient.abs().sum(-1) > 0).all()
    seq_idx = torch.tensor([[0] * 9 + [1] * 11])
    close(mixer(x, seq_idx=seq_idx), torch.cat([mixer(x[:, :9]), mixer(x[:, 9:])], dim=1))
    with pytest.raises(ValueError, match="reads the future and has no state"):
        mixer.init_state(1)


def test_classifies_sequences_by_what_came_first():
    """The sign of the first step of a long noisy sequence, from the mean of a bidirectional layer's output."""
    torch.manual_seed(0)
    layer, head = S4(8, 16, bidirectional=True, dt_min=0.01), torch.nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 1e-2)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        x, label = 0.1 * torch.randn(size, 128, 8), torch.randint(2, (size,))
        x[:, 0] += (2.0 * label - 1)[:, None] * 3
        return x, label

    for _ in range(60):
        x, label = batch(32)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(layer(x).mean(1)), label).backward()
        optimizer.step()
    x, label = batch(200)
    assert (head(layer(x).mean(1)).argmax(-1) == label).float().mean() > 0.95


def test_no_weight_decay_on_the_dynamics():
    model = zoo.create_model("s4_nano")
    kept = {name.rpartition(".")[2] for name in model.no_weight_decay()}
    assert {"log_dt", "log_A_real", "A_imag", "B", "P"} <= kept and "C" not in kept


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("s4_nano", {"init": "lgs"}, "init must be one of .*did you mean 'legs'"),
        ("s4_nano", {"init": "inv"}, r"init must be one of \['legs', 'random'\], got 'inv'"),
        ("s4d_nano", {"discretisation": "zoh"}, "discretisation must be one of"),
        ("s4_nano", {"d_state": 7}, "d_state must be even"),
        ("s4_nano", {"num_ssm": 3}, "num_ssm must divide dim"),
        ("s4d_nano", {"dt_min": 0.5}, "0 < dt_min <= dt_max"),
    ],
)
def test_options_that_do_not_fit_say_the_rule(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model(name, **options)


def test_halving_the_step_samples_the_same_system_twice_as_finely():
    """An input held for two steps: the response to it is the sum of those to its halves."""
    with torch.no_grad():
        kernel = S4DKernel(DIM, hippo.diagonal_legs(STATE)).double()
        coarse = kernel(30)
        kernel.log_dt -= math.log(2)
        close(kernel(60).unflatten(-1, (30, 2)).sum(-1), coarse)


@pytest.mark.parametrize(("layer", "initial"), [(S4Kernel, hippo.legs_dplr), (S4DKernel, hippo.diagonal_legs)])
def test_long_kernels_are_right_in_single_precision(layer, initial):
    """At the length and the step sizes of Path-X."""
    torch.manual_seed(0)
    kernel = layer(4, initial(64), dt_min=0.0001)
    with torch.no_grad():
        single, exact = kernel(16384), kernel.double()(16384)
    error = (single - exact).abs().amax(-1) / exact.abs().amax(-1)
    assert error.max() < 1e-3


def test_training_keeps_no_intermediate_of_the_kernel():
    """What autograd keeps is as large as the kernel and the parameters, not a number a mode and node."""
    layer, kept = S4Kernel(64, hippo.legs_dplr(64), directions=2), {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kernel = layer(1024)
    kernel.square().sum().backward()
    assert sum(kept.values()) < 2 * kernel.untyped_storage().nbytes()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_dynamics_learn_at_a_bounded_rate():
    """As in the authors' configurations, layer.lr: step sizes, A and B at most at 0.001."""
    model = zoo.create_model("s4_nano", depth=1)
    optimizer = build_optimizer(model, "adamw", lr=4e-3, weight_decay=0.1)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    kernel = model.blocks[0].mixer.kernel
    for name, parameter in model.named_parameters():
        slow = any(parameter is getattr(kernel, dynamic) for dynamic in ("log_dt", "log_A_real", "A_imag", "B", "P"))
        assert rates[parameter] == (1e-3 if slow else 4e-3), name
    assert {group["lr"] for group in build_optimizer(model, "adamw", lr=4e-4, weight_decay=0).param_groups} == {4e-4}


def test_dropouts_of_the_wikitext_model():
    """Of every group eight, two of them in a row (as one) within each mixer, and those of embedding and head."""
    config = zoo.create_model("s4_wikitext103", device="meta").config
    assert config.embedding_drop_rate == config.drop_rate == 0.25
    model = zoo.create_model("s4_nano", drop_rate=0.25, depth=2).train()
    rates = [module.p for module in model.blocks.modules() if isinstance(module, torch.nn.Dropout)]
    within = 1 - 0.75**2
    assert sorted(rates) == [0.25] * 3 + [within] * 2
    model = zoo.create_model("s4_nano", embedding_drop_rate=0.5, depth=1).train()
    tokens = torch.zeros(1, 4000, dtype=torch.int64)
    for dropped in (model.embed(tokens), model.forward_norm(torch.randn(1, 4000, 128))):
        assert abs((dropped == 0).double().mean().item() - 0.5) < 0.01

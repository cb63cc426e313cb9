"""Equations: forms that agree, what a layer does not depend on, how near an approximation comes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.claims.declare import Found, claim
from zoo.kernels.ssd import ssd
from zoo.layers.attention.positional import PositionalAttention
from zoo.layers.attention.random_features import orthogonal_gaussian, positive_features
from zoo.layers.attention.sparse_low_rank import scatterbrain_weights
from zoo.layers.ssm import hippo
from zoo.layers.ssm.s4 import S4Kernel


def largest(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item()


@claim(
    "retnet", "2307.08621", says="The parallel, the recurrent and the chunkwise form give the same.",
    source="section 2: three representations", evidence="identity", value="largest difference of a logit",
    at_most=1e-9,
)  # fmt: skip
@torch.no_grad()
def retnet_forms() -> Found:
    """Logits of retnet_nano in float64 for 50 tokens: in one chunk, in chunks of 16, and token by token."""
    read, built = torch.randint(0, 256, (1, 50)), {}
    for chunk in (64, 16):
        torch.manual_seed(0)
        built[chunk] = zoo.create_model("retnet_nano", dtype=torch.float64, chunk_size=chunk).eval()
    whole, model = built[64](read), built[64]
    state = model.init_state(1)
    steps = torch.cat([model(read[:, t : t + 1], state) for t in range(50)], dim=1)
    apart = {"chunkwise": largest(built[16](read), whole), "recurrent": largest(steps, whole)}
    return Found(max(apart.values()), apart)


@claim(
    "mamba2", "2405.21060", says="The recurrence is attention under a mask of decays: one function in two forms.",
    source="section 5: state space duality", evidence="identity", value="largest difference", at_most=1e-10,
)  # fmt: skip
@torch.no_grad()
def mamba2_duality() -> Found:
    """The recurrence of 60 steps in float64 against (L o C B^T) times the inputs, all matrices written out."""
    batch, length, heads, width, size = 1, 60, 2, 3, 4
    x = torch.randn(batch, length, heads, width, dtype=torch.float64)
    dt, A = torch.rand(batch, length, heads, dtype=torch.float64), -torch.rand(heads, dtype=torch.float64)
    B, C = torch.randn(2, batch, length, 1, size, dtype=torch.float64)
    recurrent = ssd(x, dt, A, B, C, impl="reference").output
    time = (dt * A).cumsum(1).transpose(1, 2)  # (B, H, T)
    decay = (time[..., :, None] - time[..., None, :]).tril().exp().tril()
    scores = decay * (C[:, :, 0] @ B[:, :, 0].mT)[:, None]  # (B, H, T, T)
    attention = torch.einsum("bhts,bshp->bthp", scores, dt[..., None] * x)
    return Found(largest(recurrent, attention))


@claim(
    "s4", "2111.00396", says="HiPPO matrices remember what a random state matrix has forgotten.",
    source="section 4.4, figure 3: HiPPO against random initial values", evidence="measured",
    value="share of a signal 100 steps ago that HiPPO's state tells beyond the best of five random ones", at_least=0.2,
)  # fmt: skip
def s4_hippo_memory() -> Found:
    """Smooth noise 100 steps ago, read linearly from 32 numbers of state with steps of 0.01: share of its variance."""
    build = partial(S4Kernel, 1, dt_min=0.01, dt_max=0.01)
    best = recalled(build(hippo.legs_dplr(32)).double())
    random = [recalled(build(hippo.random_dplr(32)).double()) for _ in range(5)]
    return Found(best - max(random), {"HiPPO": best, "random": random})


@torch.no_grad()
def recalled(kernel: S4Kernel, delay: int = 100, length: int = 2000) -> float:
    """Share of the variance of u[t - delay], u smooth noise, that the best readout finds in the states."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, length, 1, dtype=torch.float64, generator=generator)
    u = torch.nn.functional.avg_pool1d(u.mT, 16, 1).mT
    x, states = torch.zeros(1, 1, kernel.d_state, dtype=torch.float64), []
    for t in range(u.shape[1]):
        _, x = kernel.step(u[:, t], x)
        states.append(x[0, 0])
    inputs, target = torch.stack(states)[delay + 100 :], u[0, 100:-delay]
    rest = target - inputs @ torch.linalg.lstsq(inputs, target, driver="gelsd").solution
    return 1 - (rest.square().mean() / target.square().mean()).item()


@claim(
    "s4d", "2206.11893", says="Without its low-rank part and with half the input HiPPO answers a slow input alike.",
    source="theorem 3: S4D-LegS tends to S4-LegS as the state grows", evidence="identity",
    value="relative distance with 128 numbers of state over that with 32", at_most=0.5,
)  # fmt: skip
def s4d_approximates_s4() -> Found:
    """First four numbers of the state after a constant input up to t from 0.1 to 2, in float64: A and B of HiPPO-LegS
    beside the normal part of A and B / 2."""
    times, apart = torch.linspace(0.1, 2.0, 20, dtype=torch.float64), {}
    for size in (32, 64, 128):
        A, B = hippo.legs_matrix(size)
        normal = A + torch.outer(B, B) / 2
        full, diagonal = (
            torch.stack([torch.linalg.solve(M, torch.linalg.matrix_exp(t * M) @ b - b)[:4] for t in times])
            for M, b in ((A, B), (normal, B / 2))
        )
        apart[size] = ((full - diagonal).norm() / full.norm()).item()
    return Found(apart[128] / apart[32], {"relative distance": apart})


@claim(
    "drope", "2503.15029", says="Headings count by their differences alone, and a full turn changes nothing.",
    source="section on DRoPE: relative and periodic angles", evidence="identity", value="largest change of an answer",
    at_most=1e-9,
)  # fmt: skip
@torch.no_grad()
def drope_headings() -> Found:
    """Answers of drope_nano in float64 for seven agents after whole turns of some headings, and a turn of all by
    1.2."""
    model = zoo.create_model("drope_nano", dtype=torch.float64).eval()
    unit = torch.rand(2, 7, 4, dtype=torch.float64)
    scene = torch.cat([10 * unit[..., :2], math.pi * (1 - 2 * unit[..., 2:3]), unit[..., 3:]], dim=-1)
    expected, apart = model(scene), {}
    for name, turn in (("whole turns", 2 * math.pi * torch.randint(-3, 4, (2, 7)).double()), ("all by 1.2", 1.2)):
        turned = scene.clone()
        turned[..., 2] += turn
        apart[name] = largest(model(turned), expected)
    return Found(max(apart.values()), apart)


def scatterbrain_errors(scale: float, seed: int, length: int = 64, dim: int = 16) -> Tensor:
    """Frobenius distances to the softmax matrix: of both parts together, of the sparse one, of the low-rank one.

    The sparse part has the largest 15 % of each row as support; logits have the standard deviation ``scale`` squared.
    """
    torch.manual_seed(seed)
    q, k = (scale * torch.randn(length, dim, dtype=torch.float64) / dim**0.25 for _ in range(2))
    projection = orthogonal_gaussian(32, dim).double()
    exact = (q @ k.T).exp()
    support = exact >= exact.quantile(0.85, dim=1, keepdim=True)
    low_rank = positive_features(q, projection) @ positive_features(k, projection).T
    together = scatterbrain_weights(q, k, projection, support)
    exact, *found = (a / a.sum(-1, keepdim=True) for a in (exact, together, exact * support, low_rank))
    return torch.stack([(a - exact).norm() for a in found])


def _scatterbrain(scales: tuple[float, ...]) -> Found:
    found, worst = {}, 0.0
    for scale in scales:
        together, sparse, low_rank = torch.stack([scatterbrain_errors(scale, seed) for seed in range(8)]).mean(0)
        found[f"scale {scale}"] = {"both": together.item(), "sparse": sparse.item(), "low rank": low_rank.item()}
        worst = max(worst, (together / min(sparse, low_rank)).item())
    return Found(worst, found)


_closer: dict[str, Any] = {
    "says": "Sparse and low-rank together are nearer to softmax attention than either part alone.",
    "source": "section 3 and figure 1: lower error at any temperature", "evidence": "measured",
    "value": "largest error over that of the better part", "at_most": 1.0,
}  # fmt: skip


@claim("scatterbrain scatterbrain_text", "2110.15343", **_closer)
def scatterbrain_error() -> Found:
    """Distances to the softmax matrix of 64 random queries and keys, mean of 8 draws, logits of deviation up to 1."""
    return _scatterbrain((0.25, 0.5, 0.75, 1.0))


@claim("scatterbrain", "2110.15343", **_closer)
def scatterbrain_error_where_few_keys_count() -> Found:
    """The same with logits of deviation 2.25 and 4, where a few keys hold nearly all of a row."""
    return _scatterbrain((1.5, 2.0))


@claim(
    "positional",
    "2410.01686",
    says="Who attends to whom is decided by places, not by what stands there.",
    source="section 3: positional attention",
    evidence="identity",
    value="largest departure from a linear map",
    at_most=1e-12,
)
@torch.no_grad()
def positional_weights() -> Found:
    """One layer in float64: that of 1.7 x - 0.7 y beside 1.7 times that of x and 0.7 times that of y less."""
    layer = PositionalAttention(16, 2, 9).double()
    codes, (x, y) = torch.eye(9, dtype=torch.float64), torch.randn(2, 1, 9, 16, dtype=torch.float64)
    mixed = layer(1.7 * x - 0.7 * y, codes)
    return Found(largest(mixed, 1.7 * layer(x, codes) - 0.7 * layer(y, codes)))

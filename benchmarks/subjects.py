"""What ``benchmarks/kernels.py`` measures: each operation at a model's sizes, and the same in plain torch."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.kernels import (
    block_sparse_attention,
    causal_conv1d,
    deformable_attention_3d,
    delta_rule,
    generalized_delta_rule,
    grouped_matmul,
    hashed_lookup,
    leaky_memory,
    linear_attention,
    linear_cross_entropy,
    linear_recurrence,
    long_conv,
    momentum_delta_rule,
    rms_norm,
    rope,
    selective_scan,
    sliding_window_attention,
    ssd,
    taylor_attention,
)

WINDOW, BLOCK = 128, 64
HEADS, HEAD_DIM = 8, 64
VOCABULARY = 50257
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """An operation at one setting.

    ``call(impl=..., **inputs)`` is the public function; ``inputs(length)`` makes its tensors on the CPU in float32;
    ``peers`` take the same inputs, ``cuda_peers`` on a GPU only, ``loops`` at one length only, they are slow.
    ``decodes``: it takes and returns a state.
    """

    name: str
    operation: str
    call: Callable[..., Any]
    inputs: Callable[[int], Inputs]
    peers: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    cuda_peers: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    loops: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    decodes: bool = False


def heads(length: int, **sizes: int) -> Inputs:
    """Tensors (1, T, HEADS, size), one for each name."""
    return {name: torch.randn(1, length, HEADS, size) for name, size in sizes.items()}


def scan_inputs(length: int) -> Inputs:
    return {
        "x": torch.randn(1, length, 1536),
        "dt": torch.rand(1, length, 1536) * 0.1,
        "A": -torch.rand(1536, 16) * 16,
        "B": torch.randn(1, length, 1, 16),
        "C": torch.randn(1, length, 1, 16),
    }


def ssd_inputs(length: int) -> Inputs:
    return {
        "x": torch.randn(1, length, 24, 64),
        "dt": torch.rand(1, length, 24) * 0.1,
        "A": -torch.rand(24) * 16,
        "B": torch.randn(1, length, 1, 128),
        "C": torch.randn(1, length, 1, 128),
    }


def conv_inputs(length: int) -> Inputs:
    return {"x": torch.randn(1, length, 1792), "weight": torch.randn(1792, 4), "bias": torch.randn(1792)}


def gated_inputs(length: int, *shape: int) -> Inputs:
    q = heads(length, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM)
    return q | {"log_decay": -torch.rand(1, length, HEADS, *shape) * 0.1}


def recurrence_inputs(length: int) -> Inputs:
    return {"x": torch.randn(1, length, 2560), "log_decay": -torch.rand(1, length, 2560)}


def memory_inputs(length: int) -> Inputs:
    """Of eight series, as the authors' neuron for SHD makes them: 100 memories behind 200 hidden units."""
    return {
        "x": torch.randn(8, length, 200), "W_in": torch.randn(100, 200) / 17, "W_out": torch.randn(200, 100) / 14,
        "bias": torch.zeros(100), "decay": torch.rand(100), "gain": torch.rand(100),
    }  # fmt: skip


def delta_inputs(length: int, *gate: int) -> Inputs:
    """``gate``: channels of the log decay of a step and head; none for no decay."""
    tensors = gated_inputs(length, *gate) if gate else heads(length, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM)
    return tensors | {"k": F.normalize(tensors["k"], dim=-1), "beta": torch.rand(1, length, HEADS)}


def goose_inputs(length: int) -> Inputs:
    """As RWKV-7 makes them."""
    tensors = heads(length, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM, a=HEAD_DIM)
    a, rate, gate = -F.normalize(tensors["a"], dim=-1), *heads(length, rate=HEAD_DIM, gate=HEAD_DIM).values()
    return tensors | {"a": a, "b": -a * rate.sigmoid(), "log_decay": -0.607 * gate.sigmoid()}


def titans_inputs(length: int) -> Inputs:
    """As the linear memory of Titans makes them."""
    tensors = heads(length, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM)
    gates = {name: torch.rand(1, length, HEADS) for name in ("rate", "log_decay", "log_momentum")}
    decay, momentum = -0.1 * gates["log_decay"], torch.log(0.05 + 0.9 * gates["log_momentum"])
    gates |= {"log_decay": decay, "log_momentum": momentum}
    return tensors | gates | {"k": F.normalize(tensors["k"], dim=-1)}


def convolution_inputs(length: int) -> Inputs:
    return {"u": torch.randn(1, length, 768), "kernel": torch.randn(768, length) / length, "D": torch.randn(768)}


def sparse_inputs(length: int) -> Inputs:
    blocks = -(-length // BLOCK)
    near = (torch.arange(blocks)[:, None] - torch.arange(blocks)).clamp(-1, 2)
    mask = ((near >= 0) & (near < 2)) | (torch.arange(blocks) == 0)  # the own, the previous and the first block
    return heads(length, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM) | {"block_mask": mask.expand(1, 1, -1, -1)}


def expert_inputs(length: int) -> Inputs:
    counts = torch.bincount(torch.randint(8, (2 * length,), generator=torch.Generator().manual_seed(0)), minlength=8)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    return {"x": torch.randn(2 * length, 512), "weight": torch.randn(8, 512, 1024) / 23, "offsets": offsets}


def table_inputs(length: int) -> Inputs:
    return {"x": torch.randn(1, length, 512), "tables": 0.02 * torch.randn(64, 256, 512)}


def camera_inputs(length: int) -> Inputs:
    return {
        "value": torch.randn(1, 16, 24, 8, 32), "depth": torch.randn(1, 16, 24, 32).softmax(-1),
        "locations": torch.rand(1, length, 8, 8, 3), "weights": torch.randn(1, length, 8, 8).softmax(-1),
    }  # fmt: skip


def norm_inputs(length: int) -> Inputs:
    return {"x": torch.randn(1, length, 1536), "weight": torch.randn(1536), "z": torch.randn(1, length, 1536)}


def rope_inputs(length: int) -> Inputs:
    angles = torch.arange(length)[:, None] * 10000 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    return heads(length, x=HEAD_DIM) | {"cos": angles.cos(), "sin": angles.sin()}


def loss_inputs(length: int) -> Inputs:
    return {
        "hidden": torch.randn(length, 256),
        "weight": torch.randn(VOCABULARY, 256) / 16,
        "labels": torch.randint(VOCABULARY, (length,)),
    }


def step_loop(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The recurrence over slices of what is computed for all steps beforehand, as transformers' Mamba has it."""
    decay, increment = torch.exp(dt[..., None] * A), (dt * x)[..., None] * B
    state, steps = torch.zeros_like(decay[:, 0]), []
    for t in range(x.shape[1]):
        state = decay[:, t] * state + increment[:, t]
        steps.append((state @ C[:, t, 0, :, None])[..., 0])
    return torch.stack(steps, dim=1)


def recurrence_loop(x: Tensor, log_decay: Tensor) -> Tensor:
    """One step after another into a tensor of zeros, as transformers' RecurrentGemma has it."""
    decay, states, state = log_decay.exp(), torch.zeros_like(x), torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        state = decay[:, t] * state + x[:, t]
        states[:, t] = state
    return states


def memory_loop(x: Tensor, W_in: Tensor, W_out: Tensor, bias: Tensor, decay: Tensor, gain: Tensor) -> Tensor:
    """One step after another, as the authors' neuron has it."""
    states, m = [], x.new_zeros(x.shape[0], len(decay))
    for t in range(x.shape[1]):
        kept = decay * m
        m = kept + gain * 1.7159 * torch.tanh(2 / 3 * (F.relu(x[:, t] + kept @ W_in) @ W_out + bias))
        states.append(m)
    return torch.stack(states, dim=1)


def eager_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.silu(F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=x.shape[2]).mT)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def eager_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    position = torch.arange(q.shape[1], device=q.device)
    age = position[:, None] - position
    return eager_attention(q, k, v, (age >= 0) & (age < WINDOW))


def eager_blocks(q: Tensor, k: Tensor, v: Tensor, block_mask: Tensor) -> Tensor:
    mask = block_mask.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., : q.shape[1], : q.shape[1]]
    return eager_attention(q, k, v, mask.tril())


def eager_long_conv(u: Tensor, kernel: Tensor, D: Tensor) -> Tensor:
    size = 2 * u.shape[1]
    product = torch.fft.rfft(u, size, dim=1) * torch.fft.rfft(kernel, size).mT
    return torch.fft.irfft(product, size, dim=1)[:, : u.shape[1]] + D * u


def eager_experts(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    expert = torch.searchsorted(offsets, torch.arange(len(x), device=x.device), right=True) - 1
    return torch.cat([x[expert == index] @ weight[index] for index in range(len(weight))])


def eager_lookup(x: Tensor, tables: Tensor) -> Tensor:
    parts = x.unflatten(-1, (len(tables), -1))
    places = 2 ** torch.arange(parts.shape[-1] - 1, -1, -1, device=x.device)
    rows = ((parts >= 0) * places).sum(-1) + tables.shape[1] * torch.arange(len(tables), device=x.device)
    weights = torch.sigmoid(2 * parts.abs()).prod(-1)
    bags = rows.flatten(0, -2), tables.flatten(0, 1)
    return F.embedding_bag(*bags, per_sample_weights=weights.flatten(0, -2), mode="sum").view(*x.shape[:-1], -1)


def eager_lift(value: Tensor, depth: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Through the volume."""
    volume = torch.einsum("bhwnc,bhwd->bncdhw", value, depth).flatten(0, 1)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)[:, None]
    read = F.grid_sample(volume, grid, align_corners=False)[:, :, 0].unflatten(0, value.shape[::3][:2])
    return torch.einsum("bncqp,bqnp->bqnc", read, weights)


def eager_norm(x: Tensor, weight: Tensor, z: Tensor) -> Tensor:
    return F.rms_norm(x * F.silu(z), (x.shape[-1],), weight, 1e-5)


def eager_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def eager_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.mT, labels)


def flash_linear_attention(module: str, function: str, **renamed: str) -> dict[str, Callable[..., Tensor]]:
    """The function of flash-linear-attention as a peer, where it is installed; ``renamed``: our name -> its name."""
    if importlib.util.find_spec("fla") is None:
        return {}

    def call(**inputs: Tensor) -> Tensor:
        found = getattr(importlib.import_module(f"fla.ops.{module}"), function)
        return found(**{renamed.get(name, name): t for name, t in inputs.items()})[0]

    return {"flash-linear-attention": call}


SUBJECTS = [
    Subject("selective_scan", "selective_scan", selective_scan, scan_inputs, loops={"loop": step_loop}, decodes=True),
    Subject("ssd", "ssd", ssd, ssd_inputs, decodes=True),
    Subject(
        "causal_conv1d", "causal_conv1d", partial(causal_conv1d, activation="silu"), conv_inputs,
        {"eager": eager_conv}, decodes=True,
    ),
    Subject(
        "linear_attention", "linear_attention", linear_attention,
        partial(heads, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM),
        cuda_peers=flash_linear_attention("linear_attn", "chunk_linear_attn"), decodes=True,
    ),
    Subject(
        "linear_attention, scalar gate", "linear_attention", linear_attention, gated_inputs,
        cuda_peers=flash_linear_attention("simple_gla", "chunk_simple_gla", log_decay="g"), decodes=True,
    ),
    Subject(
        "linear_attention, vector gate", "linear_attention", linear_attention,
        lambda length: gated_inputs(length, HEAD_DIM),
        cuda_peers=flash_linear_attention("gla", "chunk_gla", log_decay="g"), decodes=True,
    ),
    Subject(
        "linear_recurrence", "linear_recurrence", linear_recurrence, recurrence_inputs, loops={"loop": recurrence_loop},
        decodes=True,
    ),
    Subject("leaky_memory", "leaky_memory", leaky_memory, memory_inputs, loops={"loop": memory_loop}, decodes=True),
    Subject(
        "delta_rule", "delta_rule", delta_rule, delta_inputs,
        cuda_peers=flash_linear_attention("delta_rule", "chunk_delta_rule"), decodes=True,
    ),
    Subject(
        "delta_rule, vector gate", "delta_rule", delta_rule, lambda length: delta_inputs(length, HEAD_DIM),
        cuda_peers=flash_linear_attention("kda", "chunk_kda", log_decay="g"), decodes=True,
    ),
    Subject(
        "generalized_delta_rule", "generalized_delta_rule", generalized_delta_rule, goose_inputs,
        cuda_peers=flash_linear_attention("generalized_delta_rule.dplr", "chunk_dplr_delta_rule", log_decay="gk"),
        decodes=True,
    ),
    Subject("momentum_delta_rule", "momentum_delta_rule", momentum_delta_rule, titans_inputs, decodes=True),
    Subject("taylor_attention", "taylor_attention", taylor_attention, partial(heads, q=16, k=16, v=64), decodes=True),
    Subject("long_conv", "long_conv", long_conv, convolution_inputs, {"eager": eager_long_conv}),
    Subject(
        "sliding_window_attention", "sliding_window_attention", partial(sliding_window_attention, window=WINDOW),
        partial(heads, q=HEAD_DIM, k=HEAD_DIM, v=HEAD_DIM), {"eager": eager_window},
    ),
    Subject(
        "block_sparse_attention", "block_sparse_attention",
        partial(block_sparse_attention, block_size=BLOCK, causal=True), sparse_inputs, {"eager": eager_blocks},
    ),
    Subject("grouped_matmul", "grouped_matmul", grouped_matmul, expert_inputs, {"eager": eager_experts}),
    Subject(
        "deformable_attention_3d", "deformable_attention_3d", deformable_attention_3d, camera_inputs,
        {"eager": eager_lift},
    ),
    Subject("hashed_lookup", "hashed_lookup", hashed_lookup, table_inputs, {"eager": eager_lookup}),
    Subject("rms_norm, gated", "rms_norm", rms_norm, norm_inputs, {"eager": eager_norm}),
    Subject("rope", "rope", rope, rope_inputs, {"eager": eager_rope}),
    Subject("linear_cross_entropy", "linear_cross_entropy", linear_cross_entropy, loss_inputs, {"eager": eager_loss}),
]  # fmt: skip

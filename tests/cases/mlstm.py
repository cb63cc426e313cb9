from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from cases import Case
from zoo.kernels.dispatch import check_device
from zoo.kernels.mlstm import mlstm

K, V = 5, 6


def inputs(batch: int, length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Now the input's gate is the larger, now the decayed stabiliser; after a decay of -inf always the gate. One head
    is divided by its normaliser, the other by the bound: sums of terms of one sign, which nearly cancel in no draw."""
    generator = torch.Generator().manual_seed(length)
    rand, randn = (partial(draw, generator=generator) for draw in (torch.rand, torch.randn))
    q, k = (0.5 + rand(batch, length, 2, K) for _ in range(2))
    state = randn(batch, 2, K + 1, V + 1)
    state[..., :-1, -1] = 0.5 + rand(batch, 2, K)
    return {
        "q": (q * torch.tensor([1.0, 0.02])[:, None]).to(dtype),
        "k": k.to(dtype),
        "v": randn(batch, length, 2, V).to(dtype),
        "log_input": 2 * rand(batch, length, 2).to(dtype),
        "log_decay": -rand(batch, length, 2).to(dtype),
        "initial_state": state,
    }


def resumed(initial_state: torch.Tensor, **arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """The state as one tensor (B, H, K + 1, V + 1): memory, normalizer in the last column, stabilizer in the corner."""
    memory, rest = initial_state[..., :-1, :], initial_state[..., -1, -1]
    state = {"memory": memory[..., :-1], "normalizer": memory[..., -1], "stabilizer": rest}
    output, memory, normalizer, stabilizer = mlstm(**arguments, **state, chunk_size=16)
    columns = torch.cat([memory, normalizer[..., None]], dim=-1)
    corner = F.pad(stabilizer[..., None, None], [columns.shape[-1] - 1, 0])
    return output, torch.cat([columns, corner], dim=-2)


def call(
    q, k, v, log_input, log_decay, initial_state=None, seq_idx=None, impl="auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    given = {"q": q, "k": k, "v": v, "log_input": log_input, "log_decay": log_decay, "seq_idx": seq_idx, "impl": impl}
    if initial_state is None:
        initial_state = torch.zeros(*q.shape[::2], K + 1, V + 1, dtype=q.dtype)
    check_device("mlstm", q=q, initial_state=initial_state)
    return resumed(initial_state, **given)


CASES = [
    Case(
        "mlstm",
        "mlstm",
        call,
        inputs,
        resumable=True,
        over_time=("q", "k", "v", "log_input", "log_decay"),
    )
]

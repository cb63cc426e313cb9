"""What each of two processes holds under ZeRO's stages, in bytes, and whether all train to the same weights.

    zoo bench zero                     # writes benchmarks/results/zero.{json,md}

Two processes on this machine (gloo) train a transformer for three steps of AdamW in float32, each on its half of the
rows, as `--trainer.strategy ddp`, `zero1`, `zero2` and `zero3` do; one process trains on all rows. With P parameters
and N processes the paper expects 4 P bytes of weights, 4 P of gradients and 8 P of states in float32, and that stage 1
divides the states by N, stage 2 the gradients too, stage 3 the weights too. Stages 2 and 3 are FSDP2's: between steps
both hold weights / N; from forward to backward stage 2 has them whole besides. Buffers of communication are not
counted.

Paper: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv 1910.02054,
section 5.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import zoo
from zoo.benchmarks.common import MIB, command_line, publish
from zoo.train.optim import build_optimizer, state_bytes
from zoo.train.parallel import ShardedOptimizer, full_state_dict, shard

SHAPE: dict[str, Any] = {
    "vocab_size": 256, "dim": 256, "depth": 4, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 704
}  # fmt: skip
STAGES = {  # name -> what of weights, gradients and states is divided by N
    "ddp": (False, False, False),
    "zero1": (False, False, True),
    "zero2": (False, True, True),
    "zero3": (True, True, True),
}
PARTS = ("weights", "gradients", "states")
ROWS, LENGTH, STEPS = 4, 32, 3


def build(dtype: torch.dtype = torch.float32, **shape: Any) -> nn.Module:
    """The model, alike in every process."""
    torch.manual_seed(0)
    return zoo.create_model("transformer_nano", dtype=dtype, **(SHAPE | shape)).train()


def batches() -> Iterable[Tensor]:
    draws = torch.Generator().manual_seed(1)
    return (torch.randint(256, (ROWS, LENGTH), generator=draws) for _ in range(STEPS))


def held(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of their parts in this process."""
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors if tensor is not None)


def train(model: nn.Module, stage: str | None, part: Callable[[Tensor], Tensor]) -> dict[str, int]:
    """A few steps of AdamW on this process's part of each batch, in place; the bytes that it holds."""
    whole: nn.Module = model
    if stage in ("zero2", "zero3"):
        mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        shard(model, mesh, free=stage == "zero3")
    elif stage is not None:
        whole = DistributedDataParallel(model)
    around = ShardedOptimizer if stage == "zero1" else None
    optimizer = build_optimizer(model, "adamw", lr=1e-3, weight_decay=0.1, around=around)
    resting, found = held(model.parameters()), {}
    for tokens in batches():
        rows = part(tokens)
        loss = whole(rows, labels=rows)
        gathered = held(model.parameters())
        loss.backward()
        found = {
            "at rest": resting,
            "weights": gathered + (resting if gathered > resting else 0),  # the own part stays beside the whole ones
            "gradients": held(parameter.grad for parameter in model.parameters()),
        }
        optimizer.step()
        optimizer.zero_grad()
    return found | {"states": state_bytes(optimizer)}


def work(rank: int, folder: str, processes: int, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    """One process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    stages(folder, dtype, shape)
    dist.destroy_process_group()


def stages(folder: str, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    """All stages, one after another, called by every process; the first one writes what was found."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    alone = build(dtype, **shape)
    single, found = train(alone, None, lambda tokens: tokens), {}
    for stage in STAGES:
        model = build(dtype, **shape)
        own = train(model, stage, lambda tokens: tokens.chunk(processes)[rank])
        everywhere: list[Any] = [None] * processes
        dist.all_gather_object(everywhere, own)
        weights = full_state_dict(model)
        if rank == 0:
            apart = max((weights[name] - p.detach()).abs().max().item() for name, p in alone.named_parameters())
            found[stage] = {"processes": everywhere, "apart": apart}
    if rank == 0:
        count = sum(parameter.numel() for parameter in alone.parameters())
        Path(folder, "found.json").write_text(json.dumps({"parameters": count, "single": single, "stages": found}))


def measure(processes: int = 2, dtype: torch.dtype = torch.float32, **shape: Any) -> dict[str, Any]:
    """What ``work`` finds, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(work, (folder, processes, dtype, shape), nprocs=processes, start_method="spawn")
        return json.loads(Path(folder, "found.json").read_text())


def expected(stage: str, single: dict[str, int], processes: int) -> dict[str, float]:
    """The paper's formula, of what one process holds."""
    return {
        part: single[part] / (processes if divided else 1)
        for part, divided in zip(PARTS, STAGES[stage], strict=True)
    }  # fmt: skip


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for stage, record in found["stages"].items():
        most = {part: max(one[part] for one in record["processes"]) for part in ("at rest", *PARTS)}
        formula = expected(stage, found["single"], len(record["processes"]))
        total = {"found": sum(most[part] for part in PARTS), "formula": sum(formula.values())}
        cells = [f"{most[part] / MIB:.2f}" for part in ("at rest", *PARTS)]
        within = all(most[part] <= 1.1 * formula[part] for part in PARTS)
        rows.append(
            [stage, *cells, f"{total['found'] / MIB:.2f}", f"{total['formula'] / MIB:.2f}", "yes" if within else "no",
             f"{record['apart']:.1e}"]
        )  # fmt: skip
    return rows


COLUMNS = [
    "strategy", "weights between steps (MiB)", "in a step", "gradients", "states", "sum in a step", "formula",
    "each within 10 %", "largest difference of a weight",
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    options = command_line("zero", __doc__).parse_args(arguments)
    found = measure()
    title = f"{found['parameters'] / 1e6:.2f} M parameters, two processes, float32, AdamW: the fuller process"
    publish("zero", options, found, (title, COLUMNS, rows_of(found)))


if __name__ == "__main__":
    main()

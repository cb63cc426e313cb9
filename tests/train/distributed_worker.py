"""One of two processes (see test_distributed.py): trains by DDP and FSDP2; ZeRO-1 and FSDP2 with a stop and a resume.

Before that it notes how far the gradients of sharded models are from those of whole ones, what adapters learn by DDP
from what they learn in one process, and what ZeRO's stages hold.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import zoo
from cases.distributed_adapters import RUNS, arguments, compare_adapters
from zoo.benchmarks import zero
from zoo.cli import main
from zoo.train.memory import lean
from zoo.train.parallel import shard

SHARDED = ("zamba2_nano", "mor_nano")  # a module that several blocks call; blocks that are called several times
MASKED = {"iss_p": {"ratio": 0.7, "steps": 2}, "evolution": {"every": 1, "epsilon": 3.0}}
MEMORY = {  # methods -> changes of the transformer that they ask for
    "checkpointing": [], "streambp": [], "memo": [], "ssdtrain": [], "reversible": [{"kind": "reversible"}],
}  # fmt: skip


def train(name: str, *options: str) -> None:
    folder, *common = sys.argv[1:]
    arguments = ["train", "docs_mamba2_nano", "--output", f"{folder}/{name}", *common, "--trainer.devices=2", *options]
    code = main(arguments)
    assert code == 0, f"{arguments} ended with {code}"


def compare_gradients(folder: Path) -> None:
    """Write for each model, with and without checkpointing, the largest difference in any gradient."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    apart = {}
    for name in SHARDED:
        for checkpointing in (False, True):
            torch.manual_seed(0)
            whole, sharded = (zoo.create_model(name, dtype=torch.float64) for _ in range(2))
            sharded.load_state_dict(whole.state_dict())
            tokens = torch.randint(256, (4, 16))
            whole(tokens, labels=tokens).backward()
            model: Any = shard(sharded, mesh)
            model.set_grad_checkpointing(checkpointing)
            part = tokens.chunk(2)[rank]
            model(part, labels=part).backward()
            gradients = [p.grad.full_tensor() for p in model.parameters()]
            differences = [
                (found - parameter.grad).abs().max().item()
                for found, parameter in zip(gradients, whole.parameters(), strict=True)
            ]
            apart[f"{name}, {checkpointing}"] = max(differences)
    if rank == 0:
        (folder / "gradients.json").write_text(json.dumps(apart))


def compare_memory(folder: Path) -> None:
    """The same for each memory method under DDP, beside plain training of the whole batch."""
    rank, apart = dist.get_rank(), {}
    for kind, changes in MEMORY.items():
        torch.manual_seed(0)
        whole, half = (zoo.create_model("transformer_nano", dtype=torch.float64, changes=changes) for _ in range(2))
        half.load_state_dict(whole.state_dict())
        options = {"chunk_size": 7} if kind == "streambp" else {"keep": 1} if kind == "memo" else {}
        lean(half.train(), kind, **options)
        tokens = torch.randint(256, (4, 16))
        whole(tokens, labels=tokens).backward()
        part = tokens.chunk(2)[rank]
        both = DistributedDataParallel(half)
        both(part, labels=part).backward()
        pairs = zip(half.parameters(), whole.parameters(), strict=True)
        apart[kind] = max((found.grad - wanted.grad).abs().max().item() for found, wanted in pairs)
    if rank == 0:
        (folder / "memory.json").write_text(json.dumps(apart))


def compare_masks(folder: Path) -> None:
    """Write how far weights and masks that move under DDP are after three steps from those of one process."""
    rank, apart = dist.get_rank(), {}
    for kind, options in MASKED.items():
        torch.manual_seed(0)
        images, found = torch.randn(4, 1, 8, 8, dtype=torch.float64), []
        for part in (images, images.chunk(2)[rank]):
            torch.manual_seed(1)
            model = zoo.mask_weights(zoo.create_model("vit_nano", depth=1, dtype=torch.float64), kind, **options)
            ran = model if part is images else DistributedDataParallel(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                ran(part).square().mean().backward()
                optimizer.step()
                zoo.after_step(model)
            found.append(model.state_dict().values())
        apart[kind] = max((one.double() - two.double()).abs().max().item() for one, two in zip(*found, strict=True))
    if rank == 0:
        (folder / "masks.json").write_text(json.dumps(apart))


if __name__ == "__main__":
    rendezvous = f"file://{sys.argv[1]}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=int(os.environ["RANK"]), world_size=2)
    compare_gradients(Path(sys.argv[1]))
    compare_memory(Path(sys.argv[1]))
    compare_masks(Path(sys.argv[1]))
    compare_adapters(Path(sys.argv[1]))
    zero.stages(f"{sys.argv[1]}/zero", torch.float64, {"dim": 64, "depth": 2, "mlp_dim": 96})
    dist.destroy_process_group()
    train("ddp", "--trainer.strategy=ddp", "--trainer.max_steps=6")
    train("fsdp2", "--trainer.strategy=fsdp2", "--trainer.max_steps=6")
    train("zero1", "--trainer.strategy=zero1", "--trainer.max_steps=3")
    train("zero1", "--trainer.strategy=zero1", "--trainer.max_steps=6", "--resume")
    train("resumed", "--trainer.strategy=fsdp2", "--trainer.max_steps=3")
    train("resumed", "--trainer.strategy=fsdp2", "--trainer.max_steps=6", "--resume")
    for run in RUNS:
        assert main(arguments(run, Path(sys.argv[1]), 2)) == 0

"""What one of two processes does of test_distributed.py: every adapter, by DDP and beside one process."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import zoo
from zoo.adapt import own_names

SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32}
INT, TABLE = {"bits": 3, "group_size": 16}, {"bits": 2, "layout": "table"}
TUNED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # model, its options, the adapter's
    "lora": ("transformer_nano", SMALL, {"rank": 2}),
    "dora": ("transformer_nano", SMALL, {"rank": 2}),
    "paca": ("transformer_nano", SMALL, {"rank": 2}),
    "sink_lora": ("transformer_nano", SMALL, {"rank": 2, "groups": 2}),
    "mamba_lora": ("mamba_nano", {"dim": 16, "depth": 2}, {"rank": 2, "ssm": True}),
    "ladder": ("transformer_nano", SMALL, {"reduction": 2}),
    "mobiletl": ("mcunet_nano", {}, {"also": ["head.*"]}),
    "peqa": ("transformer_nano", {**SMALL, "quantize": INT}, {}),
    "l4q": ("transformer_nano", {**SMALL, "quantize": INT}, {"rank": 2}),
    "rows": ("transformer_nano", {**SMALL, "tie_embeddings": False}, {"rows": [*range(0, 256, 3)]}),
    "perp": ("transformer_nano", {**SMALL, "changes": [{"kind": "pruned", "ratio": 0.6}]}, {"rank": 2}),
    "pst": ("transformer_nano", SMALL, {"rank": 2, "score_rank": 2}),
    "sketchtune": ("transformer_nano", {**SMALL, "quantize": TABLE}, {}),
}


def adapted(kind: str) -> Any:
    torch.manual_seed(0)
    name, options, fields = TUNED[kind]
    model: Any = zoo.create_model(name, dtype=torch.float64, adapter={"kind": kind, **fields}, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.train()


def batch(model: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    if hasattr(model.config, "vocab_size"):
        tokens = torch.randint(model.config.vocab_size, (4, 12))
        return tokens, tokens
    return torch.randn(4, model.config.in_chans, *model.config.image_shape, dtype=torch.float64), torch.arange(4)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y) if x.is_floating_point() else model(x, labels=y)


def apart(kind: str, rank: int) -> dict[str, float]:
    """After three steps: how far a process's own parts are from those of one process that adds up the gradients of
    both halves, and how far these went."""
    one = adapted(kind)
    model, start = DistributedDataParallel(copy.deepcopy(one)), {key: t.clone() for key, t in one.state_dict().items()}
    halves = list(zip(*(part.chunk(2) for part in batch(one)), strict=True))
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (one, model)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, *halves[rank]).backward()
        for half in reversed(halves):  # so that running statistics are those of the first process
            statistics = {key: buffer.clone() for key, buffer in one.named_buffers()}
            (loss_of(one, *half) / 2).backward()
            for key, buffer in one.named_buffers() if half is halves[1] else ():
                buffer.copy_(statistics[key])
        for optimizer in optimizers:
            optimizer.step()
    found, expected = model.module.state_dict(), one.state_dict()
    own = [key for key in own_names(one) if expected[key].is_floating_point() and (rank == 0 or "running" not in key)]
    frozen = [key for key in expected if key not in own_names(one)]
    assert all(torch.equal(found[key], start[key]) for key in frozen), f"{kind}: something frozen moved"
    return {
        "apart": max((found[key] - expected[key]).abs().max().item() for key in own),
        "moved": max((expected[key] - start[key]).abs().max().item() for key in own),
    }


def compare_adapters(folder: Path) -> None:
    """Write what each process found."""
    rank = dist.get_rank()
    found = {kind: apart(kind, rank) for kind in TUNED}
    (folder / f"adapters-{rank}.json").write_text(json.dumps(found))


# what learns differs from step to step: recipe, options, and those of one process and of each of two
RUNS: dict[str, tuple[str, list[str], list[str], list[str]]] = {
    "ist": (
        "source_transformer_ist",
        ["--trainer.max_steps=12", "--data.seq_len=24", "--data.most=12", "--model.schedule_steps=12"],
        ["--data.batch_size=4"],
        ["--data.batch_size=2"],
    ),
    "conpet": (
        "digits_vit_conpet_dynamic",
        ["--trainer.max_epochs=2", "--model.sizes=[5,5]", "--data.tasks=2", "--data.items=24"],
        ["--data.batch_size=8"],
        ["--data.batch_size=4"],
    ),
}
QUICK = [
    "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false", "--throughput.count_flops=false", "--trainer.precision=64-true",
]  # fmt: skip


def arguments(name: str, folder: Path, processes: int) -> list[str]:
    """Of `zoo`, for the run of that name."""
    recipe, common, alone, of_two = RUNS[name]
    shared = ["--trainer.strategy=ddp", "--trainer.devices=2", *of_two] if processes == 2 else alone
    return ["train", recipe, "--output", str(folder / f"{name}-{processes}"), *QUICK, *common, *shared]

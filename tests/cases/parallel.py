"""What one of several processes does of test_parallel.py and test_parallel_runs.py."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import start_processes

import zoo
from zoo.cli import main
from zoo.offload import TPILLM
from zoo.offload.offload import stays
from zoo.offload.policy import held_of
from zoo.parallel import Traffic, parallelize, whole_state_dict

SMALL = {"dim": 32, "depth": 2, "vocab_size": 64}
HEADS = SMALL | {"num_heads": 8, "num_kv_heads": 4, "mlp_dim": 48}
ODD = HEADS | {"qk_norm": "head", "attention_sinks": True, "qkv_bias": True, "norm_order": "both", "window": 5}
EXPERTS = HEADS | {"mlp_dim": 16, "num_experts": 8}
SHARED: dict[str, tuple[str, dict[str, Any], str]] = {  # model, its options, plan
    "attention": ("transformer_nano", HEADS, "tensor"),
    "odd attention": ("transformer_nano", ODD, "tensor"),
    "gated attention, some experts": ("qwen3_next_nano", {"num_heads": 4, "num_kv_heads": 4}, "tensor"),
    "experts": ("moe_nano", EXPERTS, "tensor"),
    "shared experts": ("deepseek_nano", {}, "tensor"),
    "mamba": ("mamba_nano", SMALL | {"d_state": 4}, "tensor"),
    "mamba2": ("mamba2_nano", SMALL | {"d_state": 8, "head_dim": 8, "num_groups": 4, "bias": True}, "tensor"),
    "attention in sequence": ("transformer_nano", HEADS | {"qk_norm": "head", "norm_order": "after"}, "sequence"),
    "odd attention in sequence": ("transformer_nano", ODD, "sequence"),
    "experts in sequence": ("moe_nano", EXPERTS, "sequence"),
    "mamba2 in sequence": ("mamba2_nano", SMALL | {"d_state": 8, "head_dim": 8, "num_groups": 4}, "sequence"),
    "whole layers in sequence": ("transformer_nano", HEADS | {"qk_norm": "joint"}, "sequence"),
    "sent to experts": ("moe_nano", EXPERTS | {"balance_weight": 0.0}, "expert"),
    "sent to experts by nodes": ("moe_nano", EXPERTS | {"balance_weight": 0.0}, "expert"),
    "context": ("transformer_nano", HEADS, "context"),
    "context of all heads": ("transformer_nano", HEADS | {"num_kv_heads": 8, "qk_norm": "joint"}, "context"),
    "token ring": ("transformer_nano", HEADS, "token_ring"),
    "token ring of all heads": ("transformer_nano", HEADS | {"num_kv_heads": 8, "qk_norm": "joint"}, "token_ring"),
    "windows": ("transformer_nano", HEADS | {"window": 3, "full_layers": (1,)}, "context"),
    "packed": ("transformer_nano", HEADS | {"num_kv_heads": 8}, "context"),
    "packed windows": ("transformer_nano", HEADS | {"window": 5}, "context"),
    "token ring of windows": ("transformer_nano", HEADS | {"window": 3, "full_layers": (1,)}, "token_ring"),
    "token ring, packed": ("transformer_nano", HEADS | {"num_kv_heads": 8}, "token_ring"),
    "token ring, packed windows": ("transformer_nano", HEADS | {"window": 5}, "token_ring"),
    "vision": ("vit_nano", {"dim": 32, "depth": 2, "num_heads": 4}, "tensor"),
}
QUICK = ("odd attention in sequence", "mamba2", "experts", "token ring", "packed windows", "token ring, packed windows")
# of four rows of 16 tokens: sequences that end anywhere, padding between them and behind, one sequence, one a token
PACKED = torch.tensor([
    [0] * 3 + [1] * 6 + [2] * 7, [4] * 5 + [-1] * 3 + [6] * 4 + [-2] * 4, [3] * 16, list(range(16))
])  # fmt: skip


def run(processes: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(compare, (folder, processes, names), nprocs=processes, start_method="spawn")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(processes)]


def compare(rank: int, folder: str, processes: int, names: tuple[str, ...]) -> None:
    """Write how far outputs, losses and gradients of models that are shared out are from those of one process."""
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    found = {}
    for name in names:
        kind, options, plan = SHARED[name]
        torch.manual_seed(0)
        one: Any = zoo.create_model(kind, dtype=torch.float64, **options).train()
        extra = {"node_size": processes // 2} if "nodes" in name else {}
        shared: Any = parallelize(copy.deepcopy(one), mesh, plan, **extra)
        ids = PACKED if "packed" in name else None
        found[name] = apart(one, shared, rank, processes, ids) | {"whole": list(shared.parallel.whole)}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def loss_of(model: Any, x: Tensor, y: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The loss with side losses, and the outputs."""
    if x.is_floating_point():
        outputs = model(x)
        return torch.nn.functional.cross_entropy(outputs, y), outputs.detach()
    loss = model(x, labels=y, seq_idx=ids)
    loss = loss + sum(zoo.auxiliary_losses(model).values())
    outputs = model(x, seq_idx=ids).detach()
    return loss, outputs if ids is None else outputs[ids >= 0]


def apart(one: Any, shared: Any, rank: int, processes: int, ids: Tensor | None = None) -> dict[str, Any]:
    """The largest differences, of packed sequences where there are ids; the gradients once more after a second pass,
    which adds to them."""
    torch.manual_seed(1)
    if hasattr(one.config, "vocab_size"):
        x = torch.randint(64, (4, 16))
        y = x.masked_fill(x % 7 == 0, -100) if shared.parallel.plan != "expert" else x
    else:
        x, y = torch.randn(4, one.config.in_chans, *one.config.image_shape, dtype=torch.float64), torch.arange(4)
    own = (x.chunk(processes)[rank], y.chunk(processes)[rank]) if shared.parallel.plan == "expert" else (x, y)
    loss, outputs = loss_of(one, x, y, ids)
    loss.backward()
    with Traffic() as traffic:
        mine, found = loss_of(shared, *own, ids)
        mine.backward()
    sent, calls = traffic.bytes, dict(traffic.calls)
    if shared.parallel.plan == "expert":
        dist.all_reduce(mine := mine.detach() / processes)
        outputs = outputs.chunk(processes)[rank]
    else:
        loss_of(shared, *own, ids)[0].backward()
        loss_of(one, x, y, ids)[0].backward()
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in map(held_of, shared.parameters())}
    held = sum(storages.values()) / sum(parameter.nbytes for parameter in one.parameters())
    before = whole_state_dict(shared)
    kept = before.keys() == one.state_dict().keys() and all(
        torch.equal(before[k], t) for k, t in one.state_dict().items()
    )
    with torch.no_grad():
        for parameter in shared.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    gradients = whole_state_dict(shared)
    grads = {name: parameter.grad for name, parameter in one.named_parameters() if parameter.grad is not None}
    return {
        "loss": (loss - mine).abs().item(),
        "outputs": (outputs - found).abs().max().item(),
        "gradients": max((gradients[name] - g).abs().max().item() for name, g in grads.items()),
        "steepest": max(g.abs().max().item() for g in grads.values()),
        "state": kept,
        "held": held,
        "sent": sent,
        "calls": calls,
    }


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]


def offload(rank: int, folder: str) -> None:
    """Write what one of two processes finds of models whose parts it has in files, beside the whole model in memory."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for kind, options in (("transformer_nano", {"depth": 4}), ("mamba2_nano", {"num_groups": 2})):
        torch.manual_seed(0)
        one: Any = zoo.create_model(kind, dtype=torch.float64, **options).eval()
        text = [row.tolist() for row in zoo.generate(one, PROMPTS, 5, temperature=0)]
        shared: Any = zoo.parallelize(copy.deepcopy(one), mesh)
        alike = [row.tolist() for row in zoo.generate(shared, PROMPTS, 5, temperature=0)] == text
        parts = TPILLM().parts(shared)
        blocks = sum(parameter.nbytes for block in one.blocks for parameter in block.parameters())
        whole = sum(parameter.nbytes for parameter in one.parameters())
        limit = stays(shared, parts) + 2 * TPILLM().slot(parts) + 1
        small: Any = zoo.offload(shared, memory=limit)
        again = [row.tolist() for row in zoo.generate(small, PROMPTS, 5, temperature=0)] == text
        small.offloaded.wait()
        loads = small.offloaded.traffic.loads
        zoo.generate(small, PROMPTS, 5, temperature=0)
        small.offloaded.wait()
        found[kind] = {
            "texts": [alike, again], "slots": len(small.offloaded.memory), "parts": len(parts), "limit": limit,
            "whole": whole, "blocks": blocks, "read": sum(unit.nbytes for unit in small.offloaded.units),
            "loads": small.offloaded.traffic.loads - loads, "late": small.offloaded.traffic.late,
        }  # fmt: skip
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


# what a run of `zoo train` has: recipe, and options in one process and in each of two
RUNS: dict[str, tuple[str, list[str], list[str]]] = {
    "tensor_parallel": ("docs_transformer_nano", ["--data.batch_size=4"], ["--data.batch_size=4"]),
    "sequence_parallel": ("docs_transformer_nano", ["--data.batch_size=4"], ["--data.batch_size=4"]),
    "context_parallel": ("docs_transformer_nano", ["--data.batch_size=4"], ["--data.batch_size=4"]),
    "token_ring": ("docs_transformer_nano", ["--data.batch_size=4"], ["--data.batch_size=4"]),
    "expert_parallel": (
        "docs_moe_nano",
        ["--data.batch_size=4", "--trainer.limit_val_batches=4"],
        ["--data.batch_size=2"],
    ),
}
SHORT = [
    "--trainer.accelerator=cpu", "--trainer.max_epochs=-1", "--trainer.log_every_n_steps=1", "--model.schedule_steps=4",
    "--model.warmup_steps=2", "--ema.decay=0.9", "--data.seq_len=32", "--data.eval_batch_size=32",
    "--trainer.limit_val_batches=2", "--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null",
    "--trainer.num_sanity_val_steps=0", "--checkpoint.every_n_steps=2", "--trainer.precision=64-true",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip


def arguments(name: str, folder: str, processes: int, steps: int = 4, *more: str) -> list[str]:
    """Of ``zoo``, for a run under the strategy of that name."""
    recipe, alone, shared = RUNS[name]
    spread = [f"--trainer.strategy={name}", "--trainer.devices=2", *shared]
    limit = f"--trainer.max_steps={steps}"
    output = ["--output", f"{folder}/{name}-{processes}", *more]
    if name == "expert_parallel":  # whose side loss is of the tokens of a process
        output.append("--model.auxiliary_weight=0")
    return ["train", recipe, *output, *SHORT, limit, *(spread if processes == 2 else alone)]


def train(rank: int, folder: str, port: int) -> None:
    """One of two processes of all runs; the first one stops and goes on."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "zoo",
    }  # fmt: skip
    first = next(iter(RUNS))
    assert main(arguments(first, folder, 2, steps=2)) == 0
    for name in RUNS:
        assert main(arguments(name, folder, 2, 4, *["--resume"] * (name == first))) == 0

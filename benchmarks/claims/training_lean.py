"""Training in less memory: states of eight bits, low ranks, stages of ZeRO."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks import zero
from zoo.benchmarks.claims.declare import Found, claim
from zoo.train.callbacks.refactorize import balance, factors, forget
from zoo.train.coat import expanded, restored, scaled
from zoo.train.data import DocumentationDataModule
from zoo.train.optim import build_optimizer, state_bytes, warmup_cosine

LOW = {"kind": "sltrain", "rank": 16, "density": 0.0, "alpha": 16.0, "start": "drawn"}


def texts(rows: int = 8, length: int = 128) -> Iterator[Tensor]:
    """Batches of documentation text, the same ones in every run."""
    data = DocumentationDataModule(seq_len=length, batch_size=rows, windows="random")
    data.setup()
    return (tokens for epoch in itertools.count() for tokens, _ in data.train_dataloader())


def learn(
    model: Any, steps: int, lr: float = 4e-3, optimizer: str = "adamw", between: Callable[..., None] | None = None,
    **options: Any,
) -> tuple[float, torch.optim.Optimizer]:  # fmt: skip
    """Train in place; the mean loss of the last tenth of the steps, in nats, and the optimiser."""
    made = build_optimizer(model, optimizer, lr=lr, weight_decay=0.1, betas=(0.9, 0.95), **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda k: warmup_cosine(k, 20, steps, 0.1))
    losses = []
    for step, tokens in zip(range(steps), texts(), strict=False):
        if between is not None and step:
            between(step, made)
        made.zero_grad()
        loss = model.train()(tokens, labels=tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        made.step()
        schedule.step()
        losses.append(loss.item())
    return statistics.mean(losses[-steps // 10 :]), made


def nano(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return zoo.create_model("transformer_nano", **options)


@claim(
    "transformer", "2410.19313", says="Expanding the range of a group of states lowers the error of eight bits.",
    source="section 4: range expansion aligns the states with the format's range", evidence="trained",
    value="mean squared error of an update without expansion over that with it", at_least=1.0,
)  # fmt: skip
def coat_expansion() -> Found:
    """The moments of AdamW after 60 steps of transformer_nano on documentation text, rounded in groups of 128."""
    _, optimizer = learn(model := nano(), 60)
    lost, weights = {"expanded": 0.0, "scaled": 0.0}, [p for p in model.parameters() if p.dim() > 1]
    for name, keep in (("expanded", expanded), ("scaled", scaled)):
        for state in (optimizer.state[p] for p in weights):
            m, v = (state[key].flatten()[: state[key].numel() // 128 * 128] for key in ("exp_avg", "exp_avg_sq"))
            m2, v2 = (restored(*keep(moment.view(-1, 128))).flatten() for moment in (m, v))
            lost[name] += (m2 / (v2.sqrt() + 1e-8) - m / (v.sqrt() + 1e-8)).square().sum().item()
    return Found(lost["scaled"] / lost["expanded"], lost)


@claim(
    "transformer", "2410.19313", says="Training with eight-bit states loses almost nothing.",
    source="abstract: nearly lossless", evidence="trained", value="training loss over AdamW's", at_most=1.01,
    quick=False, limit=600,
)  # fmt: skip
def coat_loss() -> Found:
    """transformer_nano from the start, 150 steps on documentation text, by AdamW, by COAT, and without expansion."""
    runs = {"AdamW": ("adamw", {}), "COAT": ("coat", {}), "without expansion": ("coat", {"expand": False})}
    losses = {name: learn(nano(), 150, optimizer=kind, **options)[0] for name, (kind, options) in runs.items()}
    return Found(losses["COAT"] / losses["AdamW"], losses)


@claim(
    "transformer", "2410.19313", says="Both moments take 2.19 bytes a parameter.",
    source="the authors' kernel: a byte each, and three float32 numbers for 128 of them; AdamW in float32 takes 8",
    evidence="count", value="bytes a parameter", at_most=2.2,
)  # fmt: skip
def coat_bytes() -> Found:
    """States of transformer_130m's shapes with one block after a step."""
    model = nano(dim=768, depth=1, num_heads=12, num_kv_heads=12, mlp_dim=2048)
    _, optimizer = learn(model, 1, optimizer="coat")
    count = sum(p.numel() for p in model.parameters())
    return Found(state_bytes(optimizer) / count, {"parameters": count})


@claim(
    "transformer", "2505.22922", says="Balanced factors and a forgotten momentum improve low-rank training.",
    source="abstract: both techniques improve the low-rank method", evidence="trained",
    value="nats less than without, mean of three seeds", at_least=0.0, quick=False, limit=900,
)  # fmt: skip
def refactorized_training() -> Found:
    """transformer_nano of rank 16, 150 steps on documentation text, both done every 50 steps, one of them, or none."""
    ways = {
        "none": (False, False),
        "momentum reset": (False, True),
        "refactorised": (True, False),
        "both": (True, True),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for (name, (balanced, reset)), seed in itertools.product(ways.items(), range(3)):
        model = nano(seed, changes=[LOW])

        def between(
            step: int, optimizer: Any, model: Any = model, balanced: bool = balanced, reset: bool = reset
        ) -> None:
            if step % 50 == 0:
                for pair in factors(model) if balanced else ():
                    balance(*pair)
                if reset:
                    forget(optimizer)

        found[name].append(learn(model, 150, between=between)[0])
    return Found(statistics.mean(found["none"]) - statistics.mean(found["both"]), found)


@claim(
    "transformer", "1910.02054", says="Stage 1 divides the states among processes, stage 2 the gradients, stage 3 the "
    "weights.",
    source="section 5.4 and figure 1", evidence="measured", value="largest share held over that of the formula",
    at_most=1.1,
)  # fmt: skip
def zero_stages() -> Found:
    """Two processes of gloo, as `zoo bench zero`; of stage 2 the weights between steps and, apart, in a step."""
    found = zero.measure()
    shares = {}
    for stage, record in found["stages"].items():
        formula = zero.expected(stage, found["single"], 2)
        for part in zero.PARTS:
            key = "at rest" if (stage, part) == ("zero2", "weights") else part
            shares[f"{stage}, {part}"] = max(one[key] for one in record["processes"]) / formula[part]
        shares[f"{stage}, weights in a step"] = record["processes"][0]["weights"] / found["single"]["weights"]
    return Found(max(share for name, share in shares.items() if "in a step" not in name), shares)

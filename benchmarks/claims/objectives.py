"""Objectives and searches: what methods of training say of themselves, in miniature."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks import incremental, subnetworks
from zoo.benchmarks.claims.declare import Found, beyond, claim
from zoo.benchmarks.common import RETURNING, in_fresh_process, peak_memory
from zoo.cli import recipe_path
from zoo.train.alignment import Alignment
from zoo.train.contrastive import contrastive_loss, in_parts
from zoo.train.data import DigitsDataModule
from zoo.train.zeroth_order import estimate

PREFERENCES, HYPO = "preferences_transformer_hypo", {"HyPO": 0.05, "DPO": 0.0}  # lambda
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0")


def learnt(recipe: str, *overrides: str) -> dict[str, float]:
    """The metrics of a recipe's test split, after its training with overrides."""
    from zoo.train.command import TrainingRun

    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(recipe_path(recipe), [*QUIET, *overrides], Path(folder))
        run.fit()
        return {
            name.partition("/")[2]: value
            for name, value in run.trainer.test(run.model, run.datamodule, verbose=False)[0].items()
        }


@claim(
    "transformer", "2406.01462",
    says="An online divergence keeps a policy nearer to where it began than pairs of answers alone do.",
    source="section 5: the divergence of the chat policy falls from 44.9 to 27.1, as others print the table",
    evidence="trained", value="divergence with HyPO over that with DPO", at_most=0.61, quick=False, limit=600,
    shares="HyPO's training",
)  # fmt: skip
def hypo_divergence() -> Found:
    """transformer_nano and pairs of its own answers, of which that with fewer vowels is preferred, by the recipe
    preferences_transformer_hypo: nats an answer of 24 bytes on held-out prompts."""
    found = preferred()
    return Found(found["HyPO"]["kl"] / found["DPO"]["kl"], found)


@claim(
    "transformer", "2406.01462", says="With an online divergence a policy wins no less often than with pairs alone.",
    source="section 5: 42.2 to 46.4 % of comparisons won, as others print the table", evidence="trained",
    value="share of comparisons won over that with DPO", at_least=0.0, quick=False, limit=600, shares="HyPO's training",
)  # fmt: skip
def hypo_wins() -> Found:
    """As hypo_divergence; an answer wins that has fewer vowels than one of the pair of its prompt."""
    found = preferred()
    return Found(found["HyPO"]["win"] - found["DPO"]["win"], found)


@cache
def preferred() -> dict[str, dict[str, float]]:
    """The metrics of HyPO and of DPO."""
    return {name: learnt(PREFERENCES, f"--model.online_weight={weight}") for name, weight in HYPO.items()}


@claim(
    "transformer", "2310.10505", says="The worth of the greedy answer as a baseline makes REINFORCE learn.",
    source="section 4: it lowers the variance and keeps the mean", evidence="trained",
    value="reward over that without a baseline after as many steps", at_least=0.0, quick=False, limit=900,
)  # fmt: skip
def remax_baseline() -> Found:
    """Three letters of six to be sorted, in 400 steps of 128 answers of a transformer of one block, with a greedy
    answer to each as baseline, and with none: the mean of two seeds."""
    found = {kind: [rewarded(kind, seed) for seed in (0, 1)] for kind in ("greedy", "none")}
    return Found((sum(found["greedy"]) - sum(found["none"])) / 2, found)


def rewarded(baseline: Any, seed: int, steps: int = 400) -> float:
    """What answers are worth after a training by ReMax."""
    from lightning import Trainer

    from zoo.train.data import SortLetters, SyntheticDataModule
    from zoo.train.tasks import ReMax

    torch.manual_seed(seed)
    sizes = {"dim": 48, "depth": 1, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 96, "vocab_size": 7}
    options: dict[str, Any] = {"gamma": 1.0, "lr": 3e-3, "weight_decay": 0.0, "warmup_steps": 20, "draw_seed": seed}
    task = ReMax("transformer_nano", sizes, answer_length=3, baseline=baseline, **options)
    data = SyntheticDataModule(SortLetters(6, 3), batch_size=128, train_samples=128 * steps, val_samples=500, seed=seed)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, gradient_clip_val=1.0, **quiet)
    trainer.fit(task, data)
    return trainer.test(task, data, verbose=False)[0]["test/reward"]


beyond(
    "remax_memory", "transformer", "2310.10505", says="Without a critic training takes half of PPO's memory and time.",
    source="abstract: about 50 % of the memory, PPO about twice as slow", why="There is no PPO here to measure beside.",
)  # fmt: skip


@claim(
    "vit", "2401.15896", says="Groups of pairs take less memory for the same contrastive loss.",
    source="abstract: GPU memory demands fall significantly", evidence="measured",
    value="peak of a step in parts over that of a step at once", at_most=0.5, quick=False, limit=600,
)  # fmt: skip
def m2encoder_memory() -> Found:
    """Loss and gradients of 1,024 pairs of images of 32 pixels by a vit of width 128 and depth 4: at once, and encoded
    and compared 64 at a time."""
    peaks = {size: in_fresh_process(contrastive_peak, size, environment=RETURNING) for size in (0, 64)}
    return Found(peaks[64] / peaks[0], {"bytes": peaks})


beyond(
    "m2encoder_speed", "vit", "2401.15896", says="Training is faster where processes gather pairs in groups.",
    source="abstract: 60 % faster", why="It takes many GPUs whose network is the bound.",
)  # fmt: skip


def contrastive_peak(size: int) -> int:
    """Of a step; 0: at once."""
    model = zoo.create_model("vit_nano", img_size=32, patch_size=8, dim=128, depth=4, num_heads=4, num_classes=64)
    views, part = torch.randn(2, 1024, 1, 32, 32), size or None

    def step() -> None:
        first, second = (in_parts(lambda x: F.normalize(model(x)), view, part) for view in views)
        contrastive_loss(first, second, torch.tensor(14.0), rows=part).backward()

    return peak_memory(step)


@claim(
    "dit", "2503.14868", says="Learning an embedding from forward passes alone takes a fraction of the memory.",
    source="abstract: up to 8.2 times less training memory", evidence="measured",
    value="peak of a backward pass over that of a zeroth-order step", at_least=8.2, quick=False, limit=600,
)  # fmt: skip
def zoodip_memory() -> Found:
    """A step on eight images of 16 x 16 patches by a DiT of width 192 and depth 12, above the model: three forward
    passes without gradients, and one with a backward pass to the class's vector."""
    peaks = {kind: in_fresh_process(token_peak, kind, environment=RETURNING) for kind in ("zeroth", "backward")}
    return Found(peaks["backward"] / peaks["zeroth"], {"bytes": peaks})


def token_peak(kind: str) -> int:
    """Of a step."""
    model: Any = zoo.create_model("dit_nano", img_size=32, dim=192, depth=12, num_heads=6, class_drop_rate=0.0)
    model = zoo.adapt(model, "rows", rows=(4,))
    images, noise, t = torch.randn(8, 1, 32, 32), torch.randn(8, 1, 32, 32), torch.rand(8)
    row, classes = model.classes.rows, torch.full((8,), 4)

    def loss(vector: Tensor | None = None) -> Tensor:
        if vector is not None:
            row.copy_(vector)
        return model.errors(images, noise, t, classes).mean()

    def zeroth() -> None:
        with torch.no_grad():
            estimate(loss, row.detach().clone(), 2, 1e-3, 0, row.numel())

    return peak_memory(zeroth if kind == "zeroth" else lambda: loss().backward())


@claim(
    "transformer", "2408.11294",
    says="Rows of new tokens begin best as the means of their pieces, and stages of training make up for new tokens.",
    source="section on initialisation, the best of five; stages, as others describe them", evidence="trained",
    value="bits a byte of other text saved beside random rows and no stages", at_least=0.0, quick=False, limit=900,
)  # fmt: skip
def redwhale_adaptation() -> Found:
    """transformer_nano goes on to source code with 256 new tokens by the recipe source_transformer_redwhale, and
    without what is the paper's, in as many steps."""
    plain = ("--model.rows=random", "--trainer.callbacks=null")
    found = {"pieces and stages": (), "random": plain}
    bits = {name: learnt("source_transformer_redwhale", *options)["bits_per_byte"] for name, options in found.items()}
    return Found(bits["random"] - bits["pieces and stages"], bits)


@claim(
    "transformer", "2405.18377", says="Parts of a trained transformer 1.5 times smaller lose next to nothing.",
    source="abstract: 1.5 times smaller, negligible drop", evidence="trained",
    value="bits a byte lost, relative to the whole", at_most=subnetworks.LOSS, quick=False, limit=1500,
)  # fmt: skip
def llama_nas_smaller() -> Found:
    """docs_transformer_elastic, and the best of 60 candidates each of LINAS, a genetic algorithm and chance, as `zoo
    bench subnetworks` searches; scored on test windows."""
    found = subnetworks.measured(None, 60, 0)
    best = subnetworks.smaller(found["whole"], found["records"])
    return Found(best["test"] / found["whole"]["test"] - 1, {"whole": found["whole"], "part": best})


@claim(
    "transformer", "2302.05433", says="Searches make candidates that compute the same so often that a hash pays.",
    source="abstract: equivalent candidates occur very frequently", evidence="measured",
    value="share of the candidates that are not evaluated", at_least=subnetworks.EQUIVALENT,
)  # fmt: skip
def functional_hashing_share() -> Found:
    """A genetic search of 200 candidates among the parts of an untrained transformer of six blocks, where the width of
    a block that is left out says nothing; logits for eight bytes are hashed."""
    model: Any = zoo.create_model("transformer_nano", dim=32, depth=6, mlp_dim=256)
    parts = subnetworks.Parts(model, subnetworks.Space(6, subnetworks.WIDTHS, subnetworks.LEAST), count=1)
    record = subnetworks.searched(parts, "genetic", 200, 0)
    return Found(record["skipped"], {"evaluated": record["evaluated"]})


@claim(
    "vit", "2205.13218", says="Of the same bytes last layers a task are better spent than whole models.",
    source="figure 1 and table 1: MEMO above DER at aligned memory", evidence="trained",
    value="points of accuracy over a whole model a task", at_least=0.0, quick=False, limit=900,
)  # fmt: skip
def memo_budget() -> Found:
    """Digits of 32 pixels in five tasks under one budget of bytes, as `zoo bench incremental` measures, one seed."""
    found = {way: incremental.accuracy(way, 0) for way in incremental.WAYS}
    return Found(100 * (found["MEMO"] - found["DER"]), found)


@claim(
    "transformer", "2307.00119", says="Demonstrations that are looked up teach more than any others.",
    source="section 5: retrieved over random demonstrations", evidence="trained",
    value="accuracy on unseen tasks over that with random demonstrations", at_least=0.05, quick=False, limit=900,
)  # fmt: skip
def demonstrations_found() -> Found:
    """The recipe demonstrations_transformer_meta, with the nearest items of the bank and with any."""
    name, option = "demonstrations_transformer_meta", "--data.task.init_args.retrieval"
    found = {kind: learnt(name, f"{option}={kind}")["accuracy"] for kind in ("nearest", "random")}
    return Found(found["nearest"] - found["random"], found)


@claim(
    "vit", "2406.02601", says="Embeddings of two kinds, aligned, are better together than as they are.",
    source="section 4: alignment improves accuracy and F1 on medical tasks", evidence="measured",
    value="points of accuracy over unaligned embeddings", at_least=0.0,
)  # fmt: skip
def embedding_alignment() -> Found:
    """Left and right halves of digits, the two kinds, encoded by vit_nano, which never saw a half, and put side by
    side: the class is that of most of the five most similar training images."""
    splits, found = halves_encoded(), {}
    (u, v, known), (x, y, classes) = splits["train"], splits["test"]
    for share in (0.0, 0.25, 0.5, 1.0):
        align = Alignment.fitted(u, v, share)
        bank, asked = (torch.cat(align(*pair), 1) for pair in ((u, v), (x, y)))
        votes = known[(asked @ bank.mT).topk(5, dim=1).indices]
        found[share] = (votes.mode(1).values == classes).float().mean().item()
    return Found(100 * (found[1.0] - found[0.0]), {"accuracy over the share of the gap": found})


@torch.no_grad()
def halves_encoded() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Of both splits the features of left and of right halves, on an empty ground, and the classes."""
    model: Any = zoo.create_model("vit_nano", pretrained=True).eval()
    data, found = DigitsDataModule(augment=False), {}
    data.setup()
    for split in ("train", "test"):
        images, classes = data.sources[split].fetch(torch.arange(len(data.sources[split])), 0)
        sides = []
        for start in (0, 4):
            half = torch.full_like(images, float(images.min()))
            half[..., start : start + 4] = images[..., start : start + 4]
            sides.append(model.forward_head(model.forward_features(half), pre_logits=True))
        found[split] = (*sides, classes)
    return found

"""Training with few numbers beside full training: what learns, what a step takes, and what is learnt.

    zoo bench sparse_training         # writes benchmarks/results/sparse_training.{json,md}
    zoo bench sparse_training --steps 20 --no-save

Memory and time are those of a training step, AdamW's first included, of four blocks of width 512 on 1,024 tokens of one
byte each, in float32; a peak is that of a fresh process, above the model. SCEdit's are of a U-Net of widths 64, 128 and
256 on four images of 32 pixels.

Scores. Text: bits per byte of held-out documents, by the bundled transformer_nano, which has learnt documentation, with
70 % of its numbers gone, after some steps of each method. Pictures: decibels of digits of 8 x 8 pixels made from 4 x 4,
by a network of convolutions with 95 % of the numbers of all but the last gone, trained from the start. Features: of
scikit-learn's digits beside as many columns of noise, the accuracy of ExtraTrees that sees 32 chosen without labels,
mean of three seeds. Diffusion: error of the velocity of dark digits, by the bundled unet_nano, which knows light ones.

Expectations are the papers' own; papers are by their numbers at arXiv.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning import Trainer, seed_everything
from torch import Tensor, nn

import zoo
from zoo.benchmarks.adapter_ways import LENGTH, SHAPE, step_of
from zoo.benchmarks.common import MIB, command_line, fresh_peak, interleaved, medians, peak_memory, publish, telling
from zoo.layers.sparse.masks import masks
from zoo.train.data import DigitsDataModule, DocumentationDataModule
from zoo.train.quiet import quiet
from zoo.train.sparsity import QuickSelection
from zoo.train.tasks import LanguageModeling
from zoo.train.tasks.diffusion import velocity_errors

FULL, PRUNED = "all weights", "pruned, all that is left"
RATIO, LR = 0.7, 4e-3
ISS_P, PERP = "2303.09650", "2312.15230"  # papers of several rows
# name -> changes, adapter, learning rate; {steps} is filled in
METHODS: dict[str, tuple[list[dict[str, Any]], dict[str, Any] | None, float]] = {
    FULL: ([], None, LR),
    PRUNED: ([{"kind": "pruned", "ratio": RATIO}], None, LR),
    "ISS-P": ([{"kind": "iss_p", "ratio": RATIO}], None, LR),
    "PERP, norms": ([{"kind": "pruned", "ratio": RATIO}], {"kind": "perp", "rank": 0}, 1e-2),
    "PERP, masked LoRA": ([{"kind": "pruned", "ratio": RATIO}], {"kind": "perp", "rank": 16}, 1e-2),
    "PST": ([], {"kind": "pst", "ratio": RATIO}, 1e-2),
}
SHRINKS = {"one-shot": 1.0, "hard thresholds": 0.0, "ISS-P": 0.95}
PICTURES, KEPT, NOISY = 0.95, 32, 64


def asked(name: str, steps: int) -> dict[str, Any]:
    """Of ``create_model``, for a method that has so many steps."""
    changes, adapter, _ = METHODS[name]
    changes = [change | ({"steps": max(1, steps // 3)} if change["kind"] == "iss_p" else {}) for change in changes]
    if adapter is not None and adapter["kind"] == "pst":
        adapter = adapter | {"steps": max(1, steps)}
    return {"changes": changes} | ({} if adapter is None else {"adapter": adapter})


def learning(model: nn.Module) -> int:
    """Numbers that learn; of masked weights those that are left."""
    hidden = 0
    for name, mask in masks(model).items():
        layer: Any = model.get_submodule(name.rpartition(".")[0])
        held = layer.parametrizations[name.rpartition(".")[2]].original
        hidden += int((~mask.mask).sum()) if held.requires_grad else 0
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - hidden


def masked(name: str) -> nn.Module:
    """The model of a step, as a method trains it."""
    torch.manual_seed(0)
    return zoo.create_model("transformer_130m", **SHAPE["transformer_130m"], **asked(name, 30)).train()


def peak(name: str) -> int:
    """Bytes of a step in this process, which must be fresh."""
    model, tokens = masked(name), torch.arange(LENGTH)[None] % 256
    step_of(model, tokens[:, :32])
    return peak_memory(lambda: step_of(model, tokens))


def retrain(name: str, steps: int) -> tuple[float, int]:
    """Bits per byte of held-out documents after some steps, and the numbers that learn."""
    seed_everything(0, verbose=False)
    given = {"pretrained": True, **asked(name, steps)}
    options: dict[str, Any] = {"weight_decay": 0.0, "betas": (0.9, 0.95), "warmup_steps": 5}
    task = LanguageModeling("transformer_nano", given, lr=METHODS[name][2], schedule_steps=max(1, steps), **options)
    data = DocumentationDataModule(seq_len=256, batch_size=4, eval_batch_size=16, windows="random")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with quiet():
        trainer = Trainer(
            max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, limit_val_batches=0, limit_test_batches=12, gradient_clip_val=1.0,
        )  # fmt: skip
        if steps:
            trainer.fit(task, data)
        score = trainer.test(task, data, verbose=False)[0]["test/bits_per_byte"]
    return float(score), learning(task.trained)


class Enlarging(nn.Module):
    """Twice the resolution by convolutions, added to bilinear pixels."""

    def __init__(self, dim: int = 32, depth: int = 4):
        super().__init__()
        self.enter = nn.Conv2d(1, dim, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(depth))
        self.tail = nn.Conv2d(dim, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 1, H, W) -> (B, 1, 2 H, 2 W)."""
        y = self.enter(x)
        for layer in self.body:
            y = y + layer(F.relu(y))
        smooth = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return smooth + F.pixel_shuffle(self.tail(y), 2)


def pictures() -> tuple[Tensor, Tensor]:
    """Digits to learn from and unseen ones, (N, 1, 8, 8) in [0, 1]."""
    data = DigitsDataModule(augment=False)
    data.setup()
    parts = [torch.cat([x for x, _ in loader]) for loader in (data.train_dataloader(), data.test_dataloader())]
    train, test = (x * 0.376 + 0.305 for x in parts)
    return train, test


def enlarge(shrink: float | None, steps: int, seed: int = 0) -> tuple[float, nn.Module]:
    """Decibels of unseen digits after some steps, by soft shrinkage over the first third; None: dense."""
    train, test = pictures()
    torch.manual_seed(seed)
    model, draws = Enlarging(), torch.Generator().manual_seed(seed)
    if shrink is not None:
        zoo.mask_weights(model, "iss_p", ratio=PICTURES, shrink=shrink, steps=max(1, steps // 3), skip=("tail.*",))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(steps):
        x = train[torch.randint(len(train), (64,), generator=draws)]
        optimizer.zero_grad()
        F.l1_loss(model(F.avg_pool2d(x, 2)), x).backward()
        optimizer.step()
        zoo.after_step(model)
        schedule.step()
    with torch.no_grad():
        error = F.mse_loss(model(F.avg_pool2d(test, 2)).clamp(0, 1), test)
    return -10 * error.log10().item(), model


def table() -> tuple[Tensor, Tensor]:
    """Digits beside columns of noise (1797, 64 + 64), and their classes."""
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    x, draws = torch.tensor(pixels, dtype=torch.float32), torch.Generator().manual_seed(0)
    return torch.cat([x, 4 * torch.randn(len(x), NOISY, generator=draws)], 1), torch.tensor(target)


def laplacian(x: Tensor) -> Tensor:
    """Laplacian scores of columns, the higher the better here (He et al., 2005): how little they differ between five
    nearest rows, over their variance."""
    from sklearn.neighbors import kneighbors_graph

    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    near = torch.tensor(kneighbors_graph(x.numpy(), 5).toarray(), dtype=x.dtype)
    near = torch.maximum(near, near.mT)
    degree = near.sum(1, keepdim=True)
    x = x - (degree * x).sum(0) / degree.sum()
    varies = (degree * x.square()).sum(0)
    score = (varies - (x * (near @ x)).sum(0)) / varies.clamp(min=1e-6)
    return torch.where(varies > 1e-3, -score, -torch.inf)


def features(epochs: int) -> dict[str, Any]:
    """Accuracy with the columns of each way to choose, and the share of pixels among QuickSelection's."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import train_test_split

    x, y = table()
    rows = train_test_split(torch.arange(len(x)), test_size=0.2, random_state=0, stratify=y)
    train, test = (torch.as_tensor(part) for part in rows)

    def accuracy(columns: Tensor, seed: int) -> float:
        trees = ExtraTreesClassifier(50, random_state=seed).fit(x[train][:, columns].numpy(), y[train].numpy())
        return float(trees.score(x[test][:, columns].numpy(), y[test].numpy()))

    found: dict[str, list[float]] = {"all columns": [], "at random": [], "Laplacian score": [], "QuickSelection": []}
    pixels, first = [], laplacian(x[train]).topk(KEPT).indices
    for seed in range(3):
        chosen = QuickSelection(hidden_dim=200, epochs=epochs, seed=seed).fit(x[train]).select(KEPT)
        drawn = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))[:KEPT]
        ways = {"all columns": torch.arange(x.shape[1]), "at random": drawn, "Laplacian score": first}
        for way, columns in {**ways, "QuickSelection": chosen}.items():
            found[way].append(accuracy(columns, seed))
        pixels.append((chosen < x.shape[1] - NOISY).float().mean().item())
    return {"accuracy": {way: statistics.mean(runs) for way, runs in found.items()}, "pixels": statistics.mean(pixels)}


def diffusing(way: str, name: str = "unet_nano", **options: Any) -> Any:
    """A U-Net as it is tuned."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, **options)
    if way != FULL:
        zoo.adapt(model, "scedit" if way == "SCEdit" else "lora")
    return model.train()


def large(way: str) -> Any:
    """The U-Net of a step."""
    shape = {"dims": (64, 128, 256), "depths": (0, 1, 1), "num_layers": 2, "img_size": 32, "norm_groups": 8}
    return diffusing(way, mid_depth=1, head_dim=32, context_dim=64, **shape)


def diffusion_step(model: Any, images: Tensor) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.errors(images, torch.randn_like(images), torch.rand(len(images))).mean().backward()
    optimizer.step()
    model.zero_grad()


def peak_of_images(way: str) -> int:
    """Bytes of a step in this process, which must be fresh."""
    model = large(way)
    diffusion_step(model, torch.randn(1, 1, 32, 32))
    return peak_memory(lambda: diffusion_step(model, torch.randn(4, 1, 32, 32)))


def darken(way: str, steps: int) -> tuple[float, int]:
    """Error of the velocity of unseen dark digits after some steps, and the numbers that learn."""
    data = DigitsDataModule(augment=False, negative=True)
    data.setup()
    x, classes = (torch.cat(part) for part in zip(*data.train_dataloader(), strict=True))
    test, known = next(iter(data.test_dataloader()))
    model, draws = diffusing(way, pretrained=True), torch.Generator().manual_seed(0)
    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=2e-3, weight_decay=0.0)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=draws)
        optimizer.zero_grad()
        noise, t = torch.randn(64, *x.shape[1:], generator=draws), torch.rand(64, generator=draws)
        model.errors(x[rows], noise, t, classes[rows]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return velocity_errors(model.eval(), test, known).mean().item(), sum(p.numel() for p in learns)


def measure(steps: int, budget: float, tick: Callable[[str], None]) -> dict[str, Any]:
    """Everything, as the record has it."""
    found: dict[str, Any] = {"steps": steps, "bytes": {}, "learns": {}, "score": {}}
    tokens = torch.arange(LENGTH)[None] % 256
    for name in METHODS:
        tick(f"memory: {name}")
        found["bytes"][name] = fresh_peak(peak, name)
    tick("time")
    calls = {name: partial(step_of, masked(name), tokens) for name in METHODS}
    found["runs"], _ = interleaved(calls, budget=budget)
    found["score"]["as it was"], found["score"]["pruned"] = retrain(FULL, 0)[0], retrain(PRUNED, 0)[0]
    for name in METHODS:
        tick(f"retraining: {name}")
        found["score"][name], found["learns"][name] = retrain(name, steps)
    found["pictures"], found["left"] = {}, {}
    for name, shrink in {"dense": None, **SHRINKS}.items():
        tick(f"pictures: {name}")
        runs = [enlarge(shrink, 3 * steps, seed) for seed in range(3)]
        found["pictures"][name] = statistics.mean(score for score, _ in runs)
        found["left"][name] = learning(runs[0][1])
    tick("features")
    found["features"] = features(10)
    ways = (FULL, "LoRA", "SCEdit")
    tick("diffusion")
    found["image_bytes"] = {way: fresh_peak(peak_of_images, way) for way in ways}
    batch = torch.randn(4, 1, 32, 32)
    calls = {way: partial(diffusion_step, large(way), batch) for way in ways}
    found["image_runs"], _ = interleaved(calls, budget=budget)
    found["dark"] = {"as it was": darken(FULL, 0)[0]} | {way: darken(way, steps) for way in ways}
    return found


def verdict(met: bool) -> str:
    return "yes" if met else "no"


def tables(found: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of each table."""
    score, peaks = found["score"], found["bytes"]
    seconds = medians(found["runs"])
    whole, few = score[PRUNED], found["learns"]["PERP, norms"] / found["learns"][FULL]
    expected = {
        "PERP, masked LoRA": (
            f"within 1 % of all that is left ({score['PERP, masked LoRA'] / whole - 1:+.1%})",
            verdict(score["PERP, masked LoRA"] <= 1.01 * whole),
        ),
        "PERP, norms": (
            "better than pruned, with under 0.5 % of the numbers",
            verdict(score["PERP, norms"] < score["pruned"] and few < 0.005),
        ),
        "PST": (
            f"within 1 % of pruned by magnitude, all that is left ({score['PST'] / whole - 1:+.1%}), in less memory "
            f"({1 - peaks['PST'] / peaks[PRUNED]:.0%})",
            verdict(score["PST"] <= 1.01 * whole and peaks["PST"] < peaks[PRUNED]),
        ),
        "ISS-P": (
            f"better than pruned at once ({score['ISS-P'] / whole - 1:+.1%})", verdict(score["ISS-P"] < whole)
        ),
    }  # fmt: skip
    papers = {"PERP, norms": PERP, "PERP, masked LoRA": PERP, "PST": "2205.11005", "ISS-P": ISS_P}
    columns = [
        "method", "paper", "learns", "peak (MiB)", "of all weights", "time (ms)", "of all weights", "bits per byte",
        "expected (found)", "met",
    ]  # fmt: skip
    text = [
        [
            name, papers.get(name, ""), f"{found['learns'][name]:,}", f"{peaks[name] / MIB:,.1f}",
            f"{peaks[name] / peaks[FULL]:.2f}", f"{seconds[name] * 1e3:,.0f}", f"{seconds[name] / seconds[FULL]:.2f}",
            f"{score[name]:.3f}", *expected.get(name, ("", "")),
        ]
        for name in METHODS
    ]  # fmt: skip
    text += [[name, "", "0", "", "", "", "", f"{score[name]:.3f}", "", ""] for name in ("as it was", "pruned")]
    decibels = found["pictures"]
    gain = decibels["ISS-P"] - max(decibels["one-shot"], decibels["hard thresholds"])
    enlarged = [
        [
            name, ISS_P if name == "ISS-P" else "", f"{found['left'][name]:,}", f"{value:.2f}",
            *((f"above the others ({gain:+.2f} dB)", verdict(gain > 0)) if name == "ISS-P" else ("", "")),
        ]
        for name, value in decibels.items()
    ]  # fmt: skip
    accuracy = found["features"]["accuracy"]
    ours, others = accuracy["QuickSelection"], max(accuracy["at random"], accuracy["Laplacian score"])
    chosen = [
        [
            way, "2012.00560" if way == "QuickSelection" else "", f"{value:.1%}",
            *((f"not below the others that choose; pixels alone ({found['features']['pixels']:.0%})",
               verdict(ours >= others)) if way == "QuickSelection" else ("", "")),
        ]
        for way, value in accuracy.items()
    ]  # fmt: skip
    less = 1 - found["image_bytes"]["SCEdit"] / found["image_bytes"]["LoRA"]
    times = medians(found["image_runs"])
    lean = f"30 to 50 % less memory than LoRA ({less:.0%})", verdict(less >= 0.3)
    dark = [
        [
            way, "2312.11392" if way == "SCEdit" else "", f"{learns:,}", f"{found['image_bytes'][way] / MIB:,.1f}",
            f"{times[way] * 1e3:,.0f}", f"{error:.3f}",
            *(lean if way == "SCEdit" else ("", "")),
        ]
        for way, (error, learns) in ((way, found["dark"][way]) for way in (FULL, "LoRA", "SCEdit"))
    ]  # fmt: skip
    dark.append(["as it was", "", "0", "", "", f"{found['dark']['as it was']:.3f}", "", ""])
    steps = found["steps"]
    return [
        (f"A transformer without {RATIO:.0%} of its numbers, {steps} steps", columns, text),
        (f"Convolutions without {PICTURES:.0%} of their numbers, {3 * steps} steps",
         ["method", "paper", "numbers left", "PSNR (dB)", "expected (found)", "met"], enlarged),
        (f"{KEPT} of {64 + NOISY} columns", ["columns", "paper", "accuracy", "expected (found)", "met"], chosen),
        (f"A U-Net tuned to dark digits, {steps} steps",
         ["method", "paper", "learns", "peak (MiB)", "time (ms)", "error", "expected (found)", "met"], dark),
    ]  # fmt: skip


def before(found: Mapping[str, Any]) -> str:
    """What the figures of a row are of."""
    return (
        "Two models stand in a row of the first table and of the last. Peak and time are of a training step of four\n"
        "blocks of width 512, or of a U-Net of widths 64, 128 and 256; what learns and what it comes to is of the\n"
        f"bundled transformer_nano ({found['learns'][FULL]:,} numbers) or unet_nano ({found['dark'][FULL][1]:,}).\n\n"
    )


def after(found: Mapping[str, Any]) -> str:
    """What masks do not save."""
    peaks = found["bytes"]
    least = min(peaks[name] for name in METHODS if name != FULL) / peaks[FULL]
    return (
        f"Masks save no memory while they are trained with ({least:.2f} of all weights at the least): they stand\n"
        "beside whole matrices, and what autograd keeps of a product is the masked matrix; PST makes matrices of\n"
        "scores, too. What zeros save comes with `zoo.sparsify` afterwards.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("sparse_training", __doc__, budget=8.0)
    parser.add_argument("--steps", type=int, default=100, help="of training")
    options = parser.parse_args(arguments)
    with telling() as say:
        found = measure(options.steps, options.budget, say)
    publish("sparse_training", options, found, *tables(found), before=before(found), after=after(found))

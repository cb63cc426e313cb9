"""What small models learn here, from fixed seeds, where a claim is not about recall."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.benchmarks import drafts, extrapolation, linearize, squash
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.learning import learn
from zoo.decoding import MicroSteps
from zoo.layers import S4
from zoo.layers.ssm import hippo
from zoo.train.optim import build_optimizer


def fitted(
    model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], updates: int, lr: float,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> None:  # fmt: skip
    """Train in place by AdamW with a warm-up and a cosine."""

    def of_step(step: int) -> Tensor:
        inputs, targets = batch()
        return loss(model(inputs), targets)

    learn(model, build_optimizer(model, "adamw", lr=lr, weight_decay=0.01), of_step, updates, warmup=20)


def parity(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Random bits, and whether their number up to each place is odd."""
    bits = torch.randint(0, 2, (rows, length))
    return bits, bits.cumsum(1) % 2


@claim(
    "xlstm1", "2405.04517",
    says="Memory mixing tracks a state: sLSTM learns parity and goes on beyond the trained length.",
    source="section 4.1, figure 4: xLSTM[0:1] solves parity, xLSTM[1:0] and transformers do not", evidence="trained",
    value="accuracy of xLSTM[0:1] over that of xLSTM[1:0] at 64 bits", at_least=0.3, quick=False, limit=900,
)  # fmt: skip
def xlstm1_parity() -> Found:
    """Parity of every prefix, learnt on 32 bits in 400 updates of 64 rows by one block of width 48, asked at 64
    bits."""
    found = {}
    for name, blocks in (("xLSTM[0:1]", (0, 1)), ("xLSTM[1:0]", ())):
        torch.manual_seed(0)
        model = zoo.create_model("xlstm1_nano", vocab_size=2, depth=2, slstm_layers=blocks)
        fitted(model, partial(parity, 64, 32), 400, 6e-3, lambda logits, y: F.cross_entropy(logits.mT, y))
        bits, odd = parity(200, 64)
        with torch.no_grad():
            right = model.eval()(bits).argmax(-1) == odd
        found[name] = {
            "within 32": right[:, :32].float().mean().item(),
            "33 to 64": right[:, 32:].float().mean().item(),
        }
    scores = [record["33 to 64"] for record in found.values()]
    return Found(scores[0] - scores[1], found)


class PixelClassifier(nn.Module):
    """Pixels (B, T) to classes: two S4 layers with norms, the mean over time."""

    def __init__(self, init: Callable[[int], Any], dim: int = 32):
        super().__init__()
        self.embedding, self.head = nn.Linear(1, dim), nn.Linear(dim, 10)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.layers = nn.ModuleList(S4(dim, 32, init=init) for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embedding(pixels[..., None])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(x.mean(1))


@claim(
    "s4 s4_pixel s4_text", "2111.00396", says="HiPPO initial values generalise better than random ones.",
    source="section 4.4, figure 4: 15 points on sequential CIFAR-10", evidence="trained",
    value="points of held-out accuracy over random initial values, mean of three seeds", at_least=1.0, quick=False,
    limit=900,
)  # fmt: skip
def s4_hippo_trained() -> Found:
    """Digits read as 256 pixels, 400 images to learn from in 300 updates of 32, by two layers of width 32, three
    seeds."""
    (images, labels), (unseen, answers) = squash.digits(16)
    found: dict[str, list[float]] = {"HiPPO": [], "random": []}
    for seed in range(3):
        for name, init in (("HiPPO", hippo.legs_dplr), ("random", hippo.random_dplr)):
            torch.manual_seed(seed)
            chosen = torch.randperm(len(images))[:400]
            model = PixelClassifier(init)

            def batch(chosen: Tensor = chosen) -> tuple[Tensor, Tensor]:
                part = chosen[torch.randint(0, 400, (32,))]
                return images[part], labels[part]

            fitted(model, batch, 300, 4e-3)
            with torch.no_grad():
                found[name].append(100 * (model.eval()(unseen).argmax(1) == answers).float().mean().item())
    gains = [a - b for a, b in zip(found["HiPPO"], found["random"], strict=True)]
    return Found(sum(gains) / len(gains), found)


@claim(
    "longconv longconv_pixel longconv_text", "2302.06646",
    says="Squashing the kernels' weights is a key to what is learnt.",
    source="section 3.2 and table 2: with squash long convolutions reach S4's accuracy", evidence="trained",
    value="points of held-out accuracy over none, mean of three seeds", at_least=1.0, quick=False, limit=1500,
)  # fmt: skip
def longconv_squash() -> Found:
    """Digits read as 256 pixels, 100 images to learn from, as in `zoo bench squash` with 600 updates, three
    seeds."""
    options = Namespace(side=16, dim=32, depth=2, kernel_lr=1e-3, lr=1e-2, updates=600, batch_size=16)
    found: dict[str, list[float]] = {"none": [], "squash 0.001": []}
    for name, scores in found.items():
        for seed in range(3):
            setting = squash.SETTINGS[name] | {"init": squash.INITS["random"]}
            scores.append(squash.accuracy(setting, 100, seed, options)["accuracy"])
    gains = [a - b for a, b in zip(found["squash 0.001"], found["none"], strict=True)]
    return Found(sum(gains) / len(gains), found)


@claim(
    "positional", "2410.01686", says="Attention by place alone holds for larger numbers than it was trained on.",
    source="section 6: errors at ten times the range", evidence="trained",
    value="error over that of standard attention, the larger of two tasks", at_most=1.0, quick=False, limit=900,
)  # fmt: skip
def positional_extrapolation() -> Found:
    """Running minima and sums of eight numbers, trained on [-2, 2) for 400 updates, asked at ten times the range."""
    options = Namespace(model="positional_nano", updates=400, batch_size=128, lr=3e-3, seed=0)
    found, last = {}, str(extrapolation.SCALES[-1])
    for task in ("min", "sum"):
        errors = {a: extrapolation.measure(task, a, options)["errors"][last] for a in ("positional", "standard")}
        found[task] = errors | {"ratio": errors["positional"] / errors["standard"]}
    return Found(max(record["ratio"] for record in found.values()), found)


@claim(
    "lizard", "2507.09025", says="Without the window a transformer made linear is much worse.",
    source="table of ablations: 61.2 % of MMLU fall to 39.7 % without the window", evidence="trained",
    value="bits a byte more without the window", at_least=0.05, quick=False, limit=1200,
)  # fmt: skip
def lizard_window() -> Found:
    """transformer_nano made linear in 40 steps, as `zoo bench linearize` does in 120: whole, and without the window."""
    options = Namespace(steps=40)
    bits = {name: linearize.measure(name, options)["bits"] for name in ("whole", "no window")}
    return Found(bits["no window"] - bits["whole"], bits)


@claim(
    "hamburger", "2505.20438", says="A step says several tokens and keeps one slot for them.",
    source="figure of the repository: 1.4 to 2.7 tokens a slot at a confidence of 0.6", evidence="trained",
    value="tokens a slot", at_least=1.4,
)  # fmt: skip
def hamburger_slots() -> Found:
    """Four prompts of 160 bytes, each continued greedily by 64 from the bundled weights, at confidences of 0.6 and
    0.3."""
    model: Any = zoo.create_model("hamburger_nano", pretrained=True).eval()
    found = {}
    for confidence in (0.6, 0.3):
        draft = MicroSteps(confidence=confidence)
        for prompt in drafts.prompts(4):
            zoo.generate(model, prompt, max_new_tokens=64, temperature=0, draft=draft)
        found[f"confidence {confidence}"] = draft.counts.tokens / draft.counts.passes
    return Found(found["confidence 0.6"], found)


@claim(
    "elm", "2306.16922", says="Slow leaky memories keep what a sequence said long ago; fast ones do not.",
    source="section 4.3: the range of memory time constants decides on long sequences", evidence="trained",
    value="accuracy with slow memories over that with fast ones", at_least=0.2, quick=False, limit=600,
)  # fmt: skip
def elm_time_constants() -> Found:
    """Whether the first of 100 steps was high, learnt in 200 updates with time constants up to 150 and up to 5
    steps."""
    found = {}
    for name, longest in (("slow", 150.0), ("fast", 5.0)):
        torch.manual_seed(0)
        model = zoo.create_model("elm_nano", in_features=1, num_classes=2, tau_max=longest, dt=1.0)
        fitted(model, _first_step, 200, 5e-3)
        x, label = _first_step(500)
        with torch.no_grad():
            found[name] = (model.eval()(x).argmax(-1) == label).float().mean().item()
    return Found(found["slow"] - found["fast"], found)


def _first_step(rows: int = 64) -> tuple[Tensor, Tensor]:
    x, label = 0.1 * torch.randn(rows, 100, 1), torch.randint(0, 2, (rows,))
    x[:, 0] += label[:, None]
    return x, label

"""Recall and copying, learnt in miniature: what of a sequence a state of fixed size can keep, and for whom.

Models of width 64 and depth 2 as in ``zoo bench recall``, from the same seed, on the same sequences. Learning rates are
those at which that benchmark's results (2026-11-25) were best, updates as many as it took then, rounded up.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks import needle
from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.claims.tools import parameters
from zoo.benchmarks.recall import MODELS, TASKS, TEST, TRAIN, Subject, accuracy, build, fit, state_bytes
from zoo.convert import convert
from zoo.language.base import LanguageModel
from zoo.train.data import SelectiveCopying
from zoo.train.data.synthetic import SyntheticTask
from zoo.train.optim import build_optimizer

SEED, BATCH = 0, 64


def learnt(
    subject: Subject | nn.Module, lr: float, updates: int, task: SyntheticTask = TASKS["mqar"]
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained model, and its accuracy on unseen sequences, the updates it took and the bytes of its state."""
    torch.manual_seed(SEED)
    model = build(subject, task) if isinstance(subject, Subject) else subject
    model, done = fit(model, task, lr, Namespace(updates=updates, batch_size=BATCH))
    found = {"accuracy": accuracy(model, *task.generate(torch.arange(1000), TEST)), "updates": done}
    kept = state_bytes(model, task.length) if isinstance(model, LanguageModel) else None
    return model, found | {"parameters": parameters(model), "state, bytes": kept}


def points(
    settings: dict[str, tuple[float, int]], task: SyntheticTask = TASKS["mqar"], subjects: dict[str, Subject] = MODELS
) -> dict[str, dict[str, Any]]:
    """Name -> what was found, for names of ``subjects`` with their learning rates and updates."""
    return {name: learnt(subjects[name], lr, updates, task)[1] for name, (lr, updates) in settings.items()}


@claim(
    "based", "2402.18668", says="The larger the state of linear attention, the more of the pairs it recalls.",
    source="section 4 and figure 2: recall against the size of the state", evidence="trained",
    value="accuracy with 4 features over that with 1", at_least=0.01, quick=False, limit=900,
)  # fmt: skip
def based_recall_over_state() -> Found:
    """MQAR with 8 pairs by BASED of a convolution and Taylor attention with 1 and 4 features, 1000 updates at most."""
    found = points({f"based, conv + taylor, feature dim {n}": (6e-3, 1000) for n in (1, 4)})
    one, four = (record["accuracy"] for record in found.values())
    return Found(four - one, found)


@claim(
    "based", "2402.18668", says="At the same size of state linear attention recalls what a window has lost.",
    source="section 4.2: windows alone and linear attention alone", evidence="trained",
    value="accuracy of Taylor attention over that of a window", at_least=0.2, quick=False, limit=900,
)  # fmt: skip
def based_recall_beside_windows() -> Found:
    """MQAR with 8 pairs by BASED with a convolution, and a window of 16 or Taylor attention of 8 features, 500
    updates."""
    names = ("based, conv + window 16", "based, conv + taylor, feature dim 8")
    found = points(dict.fromkeys(names, (6e-3, 500)))
    window, taylor = (record["accuracy"] for record in found.values())
    return Found(taylor - window, found)


@claim(
    "transformer", "2312.04927", says="Attention looks up pairs of keys and values, at any number of them.",
    source="section 4: attention solves MQAR with a width that does not grow", evidence="trained", value="accuracy",
    at_least=0.99, quick=False, limit=600,
)  # fmt: skip
def attention_recall() -> Found:
    """MQAR with 8 pairs by two blocks of attention, 500 updates at most."""
    found = points({"attention": (2e-3, 500)})
    return Found(found["attention"]["accuracy"], found)


def recall_over_state(name: str, paper: str, source: str, subjects: dict[str, Subject]) -> None:
    """Declare that more of the pairs are recalled with a larger state, the first subject, than with a smaller one."""

    def run() -> Found:
        found = points(dict.fromkeys(subjects, (6e-3, 600)), subjects=subjects)
        large, small = (record["accuracy"] for record in found.values())
        return Found(large - small, found)

    run.__name__ = f"{name}_recall_over_state"
    run.__doc__ = f"MQAR with 8 pairs by {' and by '.join(subjects)}, 600 updates at most."
    claim(
        name, paper, says="A larger state recalls more, at the same width.", source=source, evidence="trained",
        value="accuracy over that with the smaller state", at_least=0.1, quick=False, limit=900,
    )(run)  # fmt: skip


FIGURE = "section 9.1 of Mamba-2, figure 8: MQAR with states of 16, 64 and 256"
recall_over_state("mamba2", "2405.21060", FIGURE, {n: MODELS[n] for n in ("mamba2, d_state 64", "mamba2, d_state 16")})
recall_over_state(
    "mamba",
    "2405.21060",
    FIGURE,
    {f"mamba, d_state {n}": Subject("Mamba", "mamba_nano", {"d_state": n}) for n in (64, 16)},
)


DELTA = {
    "deltanet": Subject("DeltaNet", "deltanet_nano", {"num_heads": 2, "mlp_dim": 128}),
    "gated deltanet": Subject(
        "Gated DeltaNet", "gated_deltanet_nano", {"num_heads": 2, "head_dim": 16, "mlp_dim": 128}
    ),
}


@claim(
    "deltanet gated_deltanet", "2406.06484", says="A memory that is corrected instead of added to looks up all pairs.",
    source="section 4.1, figure 2: DeltaNet solves MQAR where other linear recurrences do not", evidence="trained",
    value="accuracy of the lesser of both", at_least=0.99, quick=False, limit=900,
)  # fmt: skip
def delta_rule_recall() -> Found:
    """MQAR with 8 pairs by DeltaNet and Gated DeltaNet, 600 updates at most at a learning rate of 0.006."""
    found = points(dict.fromkeys(DELTA, (6e-3, 600)), subjects=DELTA)
    return Found(min(record["accuracy"] for record in found.values()), found)


SCATTERED = SelectiveCopying(seq_len=64, vocab_size=16, num_data=8)


@claim(
    "mamba s4d", "2312.00752",
    says="A recurrence that selects copies scattered tokens, one that is fixed in time does not.",
    source="section 4.1.1, table 1: S6 97 % and more, S4 18.3 %, of 4096 tokens", evidence="trained",
    value="accuracy of Mamba over that of S4D", at_least=0.5, quick=False, limit=1500,
)  # fmt: skip
def mamba_copies_selectively() -> Found:
    """Eight tokens scattered over 64 to be said in order, by Mamba and by S4D with its feed-forward layers, 1200
    updates."""
    found = points({"mamba, d_state 16": (6e-3, 1200), "s4d, d_state 32": (6e-3, 1200)}, SCATTERED)
    selective, fixed = (record["accuracy"] for record in found.values())
    return Found(selective - fixed, found)


class Peer(nn.Module):
    """Transformers' model with the interface of ours, and our rule of which parameters do not decay."""

    def __init__(self, model: Any, no_decay: set[str]):
        super().__init__()
        self.model, self.no_decay = model, no_decay

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in self.no_decay}

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        found = self.model(input_ids=tokens, labels=labels, use_cache=False)
        return found.logits if labels is None else found.loss


def twin(model: Any) -> Peer:
    """The same Mamba in transformers, with the same weights."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        zoo.save_model(model, Path(folder) / "ours")
        convert(Path(folder) / "ours", Path(folder) / "theirs", to="transformers")
        theirs = AutoModelForCausalLM.from_pretrained(Path(folder) / "theirs", dtype=torch.float32)
    return Peer(theirs, {name.rpartition(".")[2] for name in model.no_weight_decay()})


@claim(
    "mamba", "2312.00752",
    says="Our Mamba learns what transformers' Mamba learns from the same weights: to fail as it does.",
    source="the peer's code; Mamba on MQAR with a state of 16 is weak in figure 8 of Mamba-2, arXiv 2405.21060",
    evidence="trained", value="difference of both accuracies", at_most=0.02, quick=False, limit=1800,
)  # fmt: skip
def mamba_recall_beside_transformers() -> Found:
    """MQAR with 8 pairs by Mamba, ours and transformers', from our initial weights, 150 updates on the same
    sequences."""
    torch.manual_seed(SEED)
    ours: Any = build(MODELS["mamba, d_state 16"], TASKS["mqar"])
    theirs = twin(ours)
    tokens, labels = TASKS["mqar"].generate(torch.arange(64), 5)
    losses = {"ours": ours(tokens, labels=labels).item(), "transformers": theirs(tokens, labels=labels).item()}
    found = {
        name: learnt(model, 6e-3, 150)[1] | {"first loss": losses[name]}
        for name, model in (("ours", ours), ("transformers", theirs))
    }
    return Found(abs(found["ours"]["accuracy"] - found["transformers"]["accuracy"]), found)


@claim(
    "mamba", "2312.00752", says="A step of training moves our Mamba where it moves transformers'.",
    source="the peer's code", evidence="trained", value="largest relative difference of a loss", at_most=1e-3,
)  # fmt: skip
def mamba_losses_beside_transformers() -> Found:
    """Losses of both on the same 8 batches of MQAR, from our initial weights, by AdamW at a rate of 0.006."""
    torch.manual_seed(SEED)
    task, losses = TASKS["mqar"], []
    ours: Any = build(MODELS["mamba, d_state 16"], task)
    for model in (twin(ours), ours):
        optimizer = build_optimizer(model, "adamw", lr=6e-3, weight_decay=0.1)
        losses.append([])
        for batch in torch.arange(8 * BATCH).split(BATCH):
            tokens, labels = task.generate(batch, TRAIN)
            optimizer.zero_grad()
            loss = model.train()(tokens, labels=labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses[-1].append(loss.item())
    apart = [abs(a - b) / b for a, b in zip(*losses, strict=True)]
    return Found(max(apart), {"transformers": losses[0], "ours": losses[1]})


@claim(
    "titans_mac", "2501.00663", says="A memory finds what lies further back than a segment, beyond the trained length.",
    source="section 5.3: needles in 16,000 tokens", evidence="trained",
    value="accuracy at four times the trained length",
    at_least=needle.EXPECTED, quick=False, limit=900,
)  # fmt: skip
def titans_recall_beyond_the_trained_length() -> Found:
    """MQAR with 4 pairs by MAC and by a window of 8, trained on 32 tokens in 500 updates at most, asked in 128."""
    options = Namespace(updates=500, batch_size=32, seed=SEED)
    found = {name: needle.measure(name, options) for name in needle.MODELS}
    memory, window = (record["accuracy"][needle.TIMES[-1]] for record in found.values())
    return Found(memory if memory > window else 0.0, found)

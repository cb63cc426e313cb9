"""Weights without their zeros: what they cost in quality, in bytes and in time.

    zoo bench sparse                       # writes benchmarks/results/sparse.{json,md}
    zoo bench sparse --only moe_nano --no-save

Nanos with bundled weights: bits per byte of test documents against all bytes that are saved, without any training
after pruning; Wanda and R-Sparse saw 32 windows of 128 bytes of the training documents. Then random weights of a
published size: a decoding step after 16 tokens, beside the dense model and beside torch's products with compressed
sparse rows, in turns.
"""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks.common import command_line, prompt_and_step, publish, telling
from zoo.benchmarks.exits import text
from zoo.benchmarks.peers import moments
from zoo.benchmarks.quant import calibration, scored
from zoo.layers.quant import stored_bytes
from zoo.layers.sparse import SparseLinear
from zoo.quantize import Calibration
from zoo.sparsify import nbytes_read

DENSE = "dense"
NANOS = ("transformer_nano", "mamba2_nano", "moe_nano")
TIMED = "transformer_130m"
PROMPT, STEPS = 16, 8
NEAR = 0.03  # bits per byte
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{share} %, {name}": (name, {"sparsity": share / 100}) for share in (30, 50, 70) for name in ("magnitude", "wanda")
} | {f"2:4, {name}": (name, {"pattern": "2:4"}) for name in ("magnitude", "wanda")} | {
    f"{share} %, r_sparse": ("r_sparse", {"sparsity": share / 100}) for share in (30, 50, 70)
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}, "80 %": {"sparsity": 0.8}, "90 %": {"sparsity": 0.9},
    "50 %, r_sparse": {"method": "r_sparse", "sparsity": 0.5},
}  # fmt: skip
ROWS = ("80 %", "90 %")  # also as torch's compressed sparse rows


class Claim(NamedTuple):
    """What is expected, by whom, and whether figures by form meet it."""

    about: str
    expected: str
    source: str
    met: Callable[[Mapping[str, float]], bool]


QUALITY = [
    Claim(
        "50 %, wanda", "less lost than by magnitude", "LLaMA-7B: 7.26 against 17.29, float 5.68; arXiv 2306.11695",
        lambda lost: lost["50 %, wanda"] < lost["50 %, magnitude"],
    ),
    Claim(
        "2:4, wanda", "more lost than without a pattern, less than by magnitude", "arXiv 2306.11695, table 2",
        lambda lost: lost["50 %, wanda"] < lost["2:4, wanda"] < lost["2:4, magnitude"],
    ),
    Claim(
        "50 %, r_sparse", f"at most {NEAR} bits per byte lost", "comparable at 50 %: arXiv 2504.19449, abstract",
        lambda lost: lost["50 %, r_sparse"] - lost[DENSE] <= NEAR,
    ),
]  # fmt: skip
TIME = [
    Claim(
        "80 %", "a step at least 1.7 times as fast as dense", "of a product, at 80 %, over cuBLAS: arXiv 2309.10285",
        lambda step: 1.7 * step["80 %"] <= step[DENSE],
    ),
    Claim(
        "80 and 90 %", "no step slower than with torch's sparse rows", "this project",
        lambda step: all(step[form] <= step[f"{form}, torch CSR"] for form in ROWS),
    ),
    Claim("2:4", "a step no slower than dense", "half of the bytes and a bit a place", lambda s: s["2:4"] <= s[DENSE]),
    Claim(
        "50 %, r_sparse", "a step at least 1.43 times as fast as dense", "43 % end to end: arXiv 2504.19449, abstract",
        lambda step: 1.43 * step["50 %, r_sparse"] <= step[DENSE],
    ),
]  # fmt: skip


class Rows(nn.Module):
    """A linear layer over torch's compressed sparse rows, without bias."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            self.matrix = matrix.to_sparse_csr()

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix @ x.flatten(0, -2).mT).mT.unflatten(0, x.shape[:-1])


def qualities(name: str, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """A record a form of a nano."""
    trained: Any = zoo.create_model(name, pretrained=True).eval()
    seen, tested, records = calibration(name), text("test", windows=96), []
    for form in (DENSE, *FORMS):
        advance(f"{name}, {form}")
        model = copy.deepcopy(trained)
        if form != DENSE:
            method, options = FORMS[form]
            zoo.sparsify(model, method, calibration=seen, **options)
        score = scored(model, tested)
        records.append({
            "model": name, "form": form, "bytes": stored_bytes(model), "read": nbytes_read(model), "score": score
        })  # fmt: skip
    return records


@torch.no_grad()
def times(name: str, budget: float, advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """A record a form of a model of random weights."""
    advance(name)
    torch.manual_seed(0)
    models: dict[str, Any] = {DENSE: zoo.create_model(name).eval()}
    seen = Calibration([torch.randint(1, 256, (4, 64), generator=torch.Generator().manual_seed(1))])
    for form, options in SIZES.items():
        models[form] = zoo.sparsify(copy.deepcopy(models[DENSE]), calibration=seen, **options)
        if form in ROWS:
            models[f"{form}, torch CSR"] = by_rows(models[form])
    tokens = torch.randint(1, 256, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    calls = {form: partial(moments, model, tokens) for form, model in models.items()}
    runs = prompt_and_step(calls, STEPS, budget)
    for model in models.values():
        model(tokens)  # steps do not count what they read
    return [
        {
            "model": name, "form": form, "bytes": size(model), "read": nbytes_read(model),
            "step": statistics.median(runs[form][1]),
        }
        for form, model in models.items()
    ]  # fmt: skip


def by_rows(model: nn.Module) -> nn.Module:
    """A copy whose sparse layers are torch's."""
    made = copy.deepcopy(model)
    for name, layer in list(made.named_modules()):
        if isinstance(layer, SparseLinear):
            made.set_submodule(name, Rows(layer.weight.dense()))
    return made


def size(model: nn.Module) -> int:
    """Bytes that are stored; of torch's sparse rows their values and indices."""
    rows = [module.matrix for module in model.modules() if isinstance(module, Rows)]
    parts = [part for m in rows for part in (m.values(), m.col_indices(), m.crow_indices())]
    return stored_bytes(model) + sum(part.nbytes for part in parts)


def judged(records: Sequence[dict[str, Any]], figure: str, claims: Sequence[Claim]) -> list[list[str]]:
    """Model, form, expectation, source and verdict."""
    rows = []
    for name in dict.fromkeys(r["model"] for r in records):
        found = {r["form"]: r[figure] for r in records if r["model"] == name}
        for claim in claims:
            verdict = "met" if claim.met(found) else "missed"
            rows.append([name, claim.about, claim.expected, claim.source, verdict])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("sparse", __doc__, budget=40.0)
    parser.add_argument("--only", nargs="+", default=[*NANOS, TIMED], choices=(*NANOS, TIMED), metavar="MODEL")
    options = parser.parse_args(arguments)

    quality, timed = [], []
    with telling() as say:
        for name in options.only:
            if name == TIMED:
                timed += times(name, options.budget, say)
            else:
                quality += qualities(name, say)
    tables = [
        ("Expected", ["model", "form", "expected", "source", "found"],
         judged(quality, "score", QUALITY) + judged(timed, "step", TIME)),
        ("Bits per byte of test documents, pruned without training, and what a token reads",
         ["model", "form", "kB", "kB read", "bits per byte"],
         [[r["model"], r["form"], *(f"{r[key] / 1e3:.0f}" for key in ("bytes", "read")), f"{r['score']:.3f}"]
          for r in quality]),
        (f"A decoding step, random weights, float32, {torch.get_num_threads()} threads",
         ["model", "form", "MB", "MB read", "ms"],
         [[r["model"], r["form"], *(f"{r[key] / 1e6:.0f}" for key in ("bytes", "read")), f"{1e3 * r['step']:.1f}"]
          for r in timed]),
    ]  # fmt: skip
    publish("sparse", options, {"settings": vars(options), "quality": quality, "times": timed}, *tables)

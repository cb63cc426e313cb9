"""Parts of one trained transformer, searched by size and bits per byte: LINAS, a genetic algorithm and chance.

    zoo bench subnetworks                      # trains by docs_transformer_elastic, searches, writes the results
    zoo bench subnetworks --run runs/docs_transformer_elastic --evaluations 60 --no-save

A part is three to six of the blocks with a hidden width each. Each search is given as many candidates: bits per byte
of windows of the validation documents, beside the parameters; what it ends with is scored on windows of the test
documents. Candidates that compute the same are evaluated once (functional hashing): a block that is left out has a
width as well.

Expectation (Sarah et al., "LLaMA-NAS", arXiv 2405.18377): networks 1.5 times smaller lose nothing that counts, here at
most 2 % of the whole's bits per byte, without being trained again; and the search finds more than chance does (a larger
area beneath the front). Of functional hashing (Gillard et al., arXiv 2302.05433): equivalent candidates occur often,
here at least one in ten.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.benchmarks.common import RESULTS, Shown, command_line, machine, publish
from zoo.cli import recipe_path
from zoo.layers.quant import count_parameters
from zoo.subnetworks import run, swiglus
from zoo.train.data import DocumentationDataModule
from zoo.train.evolution import Genome, Search, hypervolume
from zoo.train.hashing import FunctionalCache
from zoo.train.tasks.elastic import Space

RECIPE, WIDTHS, LEAST = "docs_transformer_elastic", (64, 128, 256), 3
WAYS, WINDOWS, LENGTH = ("linas", "genetic", "random"), 16, 256
SMALLER, LOSS, EQUIVALENT = 1.5, 0.02, 0.1


def trained(folder: Path) -> Any:
    """The model of a run, which is made where there is none."""
    if not (folder / "model").exists():
        from zoo.train.command import TrainingRun

        quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0"]
        TrainingRun(recipe_path(RECIPE), quiet, folder).fit()
    return zoo.create_model(f"local-dir:{folder / 'model'}").eval()


def windows(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Spread over a split's documents, with their labels."""
    data = DocumentationDataModule(seq_len=LENGTH, batch_size=1)
    data.setup()
    source = data.sources[split]
    return source.fetch(torch.linspace(0, len(source) - 1, count).long(), 0)


class Parts:
    """The parts of a model: sizes, bits per byte, and outputs for two short windows.

    Args:
        model: whose parts.
        space: of them.
        count: windows of each split.
    """

    def __init__(self, model: Any, space: Space, count: int = WINDOWS):
        self.model, self.space = model, space
        self.splits = {split: windows(split, count) for split in ("val", "test")}
        self.sizes = [count_parameters(block) - count_parameters(block.mlp) for block in model.blocks]
        self.rest = count_parameters(model) - sum(count_parameters(block) for block in model.blocks)
        self.dim = model.config.dim

    def parameters(self, genome: Genome) -> int:
        """Of a part."""
        part = self.space.part(genome)
        return self.rest + sum(self.sizes[block] for block in part.blocks) + 3 * self.dim * sum(part.widths)

    @torch.no_grad()
    def bits(self, genome: Genome, split: str = "val") -> float:
        """Bits per byte of the windows of a split."""
        tokens, labels = self.splits[split]
        return run(self.model, self.space.part(genome), tokens, labels=labels).item() / math.log(2)

    def worth(self, genome: Genome) -> tuple[float, float]:
        """Both, of which less is better."""
        return self.parameters(genome) / 1e3, self.bits(genome)

    @torch.no_grad()
    def outputs(self, genome: Genome) -> Tensor:
        """Logits for eight bytes of two windows."""
        return run(self.model, self.space.part(genome), self.splits["val"][0][:2, :8])


def searched(parts: Parts, way: str, evaluations: int, seed: int) -> dict[str, Any]:
    """One search: its record."""
    cache: FunctionalCache[Genome] = FunctionalCache(parts.worth, parts.outputs)
    search = Search(parts.space.sizes, cache, population=min(50, max(4, evaluations // 5)), seed=seed)
    getattr(search, way)(evaluations)
    whole = parts.worth(parts.space.whole)
    front = [
        {"genome": genome, "parameters": 1e3 * size, "val": bits, "test": parts.bits(genome, "test")}
        for genome, (size, bits) in sorted(search.front().items(), key=lambda one: one[1])
    ]
    volume = hypervolume(list(search.archive.values()), (1.05 * whole[0], 2 * whole[1]))
    asked = [[1e3 * size, bits] for size, bits in search.archive.values()]
    return {
        "way": way, "seed": seed, "front": front, "volume": volume, "asked": asked, "evaluated": cache.evaluated,
        "skipped": cache.skipped,
    }  # fmt: skip


def whole_of(parts: Parts) -> dict[str, float]:
    """The record of the whole model."""
    genome = parts.space.whole
    scores = {split: parts.bits(genome, split) for split in ("val", "test")}
    return {"parameters": parts.parameters(genome), **scores}


def smaller(whole: dict[str, Any], records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all fronts' networks that are 1.5 times smaller the best on validation windows."""
    known = sorted((one for record in records for one in record["front"]), key=lambda one: one["parameters"])
    fitting = [one for one in known if one["parameters"] * SMALLER <= whole["parameters"]]
    return min(fitting or known[:1], key=lambda one: one["val"])


def show(whole: dict[str, Any], records: Sequence[dict[str, Any]]) -> tuple[Shown, str]:
    """The table of searches, and verdicts."""
    rows = [
        [r["way"], f"{len(r['asked'])}", f"{r['evaluated']}", f"{r['skipped']:.0%}", f"{len(r['front'])}",
         f"{r['volume']:.1f}", f"{smaller(whole, [r])['test']:.3f}"]
        for r in records
    ]  # fmt: skip
    best, areas = smaller(whole, records), {record["way"]: record["volume"] for record in records}
    loss = best["test"] / whole["test"] - 1
    said = [
        f"{SMALLER} times smaller, {LOSS:.0%} of bits per byte at most: {loss:+.1%} at "
        f"{whole['parameters'] / best['parameters']:.2f} times, {_verdict(loss <= LOSS)}.",
        *(
            f"A larger area than chance, {way}: {areas[way] / areas['random']:.3f} times, "
            f"{_verdict(areas[way] > areas['random'])}."
            for way in areas
            if way != "random" and "random" in areas
        ),
        *(
            f"Equivalent candidates, {EQUIVALENT:.0%} at least, {record['way']}: {record['skipped']:.0%}, "
            f"{_verdict(record['skipped'] >= EQUIVALENT)}."
            for record in records
        ),
    ]
    columns = ["search", "candidates", "evaluated", "skipped", "on the front", "area", "bits of the 1.5 times smaller"]
    title = f"parts of {whole['parameters'] / 1e3:.0f}k parameters and {whole['test']:.3f} bits per byte"
    return (title, columns, rows), "\n".join(f"- {line}" for line in said) + "\n"


def draw(whole: dict[str, Any], records: Sequence[dict[str, Any]], path: Path) -> None:
    """The candidates and the fronts, on test windows, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for record in records:
        front = record["front"]
        sizes = [one["parameters"] / 1e3 for one in front]
        axes.step(sizes, [one["test"] for one in front], where="post", marker="o", markersize=3, label=record["way"])
    axes.plot(whole["parameters"] / 1e3, whole["test"], "k*", markersize=10, label="whole")
    axes.set_xlabel("parameters, thousands")
    axes.set_ylabel("bits per byte of test documents")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def measured(run_folder: Path | None, evaluations: int, seed: int) -> dict[str, Any]:
    """Train where needed, and search."""
    with tempfile.TemporaryDirectory() as scratch:
        model = trained(run_folder or Path(scratch) / RECIPE)
        parts = Parts(model, Space(len(swiglus(model)), WIDTHS, LEAST))
        return {"whole": whole_of(parts), "records": [searched(parts, way, evaluations, seed) for way in WAYS]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("subnetworks", __doc__)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help=f"of a run of {RECIPE}; trained where it has none")
    parser.add_argument("--evaluations", type=int, default=200, help="of each search")
    parser.add_argument("--seed", type=int, default=1, help="of each search")
    options = parser.parse_args(arguments)
    here = machine()
    found = measured(options.run, options.evaluations, options.seed)
    shown, verdicts = show(found["whole"], found["records"])
    settings = {"evaluations": options.evaluations, "seed": options.seed}
    before = "Expectation" + str(__doc__).partition("Expectation")[2] + "\n"
    if not options.no_save:
        draw(found["whole"], found["records"], RESULTS / "subnetworks.png")
        before += "![fronts](subnetworks.png)\n\n"
    publish(
        "subnetworks", options, {"machine": here, "settings": settings, **found}, shown, before=before, after=verdicts
    )


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    main()

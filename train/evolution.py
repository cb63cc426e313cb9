"""Search among lists of small integers for what is best in several ways at once, by a genetic algorithm.

Papers: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002); Cummings et al., "A
Hardware-Aware Framework for Accelerating Neural Architecture Search Across Modalities" (LINAS), arXiv 2205.10358, as
LLaMA-NAS searches (arXiv 2405.18377).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoo.layers.options import require_at_least

Genome = tuple[int, ...]
Evaluate = Callable[[Genome], Sequence[float]]
CROSSOVER, CROSSOVER_ETA = 0.9, 15.0  # NSGA-II's chance of a crossing, and how near children stay to their parents


def fronts(values: np.ndarray) -> list[np.ndarray]:
    """Indices of the points (N, M) that none is better than (in all ways as good, in one better), then of those that
    are so without the first ones, and so on; less is better."""
    values = np.asarray(values)
    first, second = values[:, None], values[None]
    better = np.all(first <= second, axis=2) & np.any(first < second, axis=2)
    left, found = np.ones(len(values), dtype=bool), []
    while left.any():
        first = left & ~better[left].any(0)
        found.append(np.flatnonzero(first))
        left &= ~first
    return found


def crowding(values: np.ndarray) -> np.ndarray:
    """How far the neighbours of each point (N, M) of a front are apart, (N,): infinite at the ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = column.argsort(kind="stable")
        spread = np.ptp(column) or 1.0
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def hypervolume(values: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The area that points (N, 2) dominate, up to a reference that is worse than all of them."""
    area, height = 0.0, reference[1]
    for x, y in sorted(map(tuple, values)):
        if x < reference[0] and y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return area


class Search:
    """Genomes of integers, gene i in [0, sizes[i]), and what was found of them; nothing is evaluated twice.

    Args:
        sizes: values of each gene.
        evaluate: what a genome is worth in each way; less is better.
        population: genomes of a generation.
        seed: of all that is drawn.

    Attributes:
        archive: genome -> its values, in the order of evaluation.
    """

    def __init__(self, sizes: Sequence[int], evaluate: Evaluate, *, population: int = 50, seed: int = 0):
        require_at_least(2, population=population)
        require_at_least(1, **{f"sizes[{index}]": size for index, size in enumerate(sizes)})
        self.sizes, self.evaluate, self.population = np.asarray(sizes), evaluate, population
        self.source = np.random.default_rng(seed)
        self.archive: dict[Genome, tuple[float, ...]] = {}

    def random(self, evaluations: int) -> None:
        """So many genomes, drawn."""
        self._measure(self._drawn(evaluations))

    def genetic(self, evaluations: int) -> None:
        """NSGA-II on what is measured."""
        population = self._measure(self._drawn(min(self.population, evaluations)))
        while len(self.archive) < evaluations and len(self.archive) < self._all():
            children = self._unseen(self._children(population, self._values(population)))
            children = children or self._drawn(1)
            population = self._best(population + self._measure(children[: evaluations - len(self.archive)]))

    def linas(self, evaluations: int, generations: int = 20) -> None:
        """What is measured teaches predictors, on which NSGA-II runs; the best that it has seen is measured next."""
        require_at_least(3, population=self.population, evaluations=evaluations)  # predictors are tried on thirds
        self._measure(self._drawn(min(self.population, evaluations)))
        while len(self.archive) < evaluations and len(self.archive) < self._all():
            predict = fitted(np.array(list(self.archive)), np.array(list(self.archive.values())))
            population, seen = list(self.archive), dict[Genome, None]()
            for _ in range(generations):
                population = self._best(population, predict(np.array(population)))
                children = self._children(population, predict(np.array(population)))
                seen |= dict.fromkeys(children)
                population = list(dict.fromkeys(population + children))
            wanted = self._unseen(list(seen)) or self._drawn(1)
            best = self._best(wanted, predict(np.array(wanted)))
            self._measure(best[: evaluations - len(self.archive)])

    def front(self) -> dict[Genome, tuple[float, ...]]:
        """What nothing found is better than."""
        found = list(self.archive)
        return {found[i]: self.archive[found[i]] for i in fronts(np.array(list(self.archive.values())))[0]}

    def _all(self) -> float:
        return float(np.prod(self.sizes.astype(float)))

    def _measure(self, genomes: Sequence[Genome]) -> list[Genome]:
        for genome in genomes:
            self.archive[genome] = tuple(self.evaluate(genome))
        return list(genomes)

    def _values(self, genomes: Sequence[Genome]) -> np.ndarray:
        return np.array([self.archive[genome] for genome in genomes])

    def _drawn(self, count: int) -> list[Genome]:
        """Genomes that are in no archive, fewer where there are no more."""
        found: dict[Genome, None] = {}
        while len(found) < count and len(found) + len(self.archive) < self._all():
            genome = tuple(self.source.integers(0, self.sizes).tolist())
            if genome not in self.archive:
                found[genome] = None
        return list(found)

    def _unseen(self, genomes: Sequence[Genome]) -> list[Genome]:
        return [genome for genome in dict.fromkeys(genomes) if genome not in self.archive]

    def _best(self, genomes: Sequence[Genome], values: np.ndarray | None = None) -> list[Genome]:
        """At most a population, front by front, of the last one those that stand alone."""
        genomes = list(dict.fromkeys(genomes)) if values is None else list(genomes)
        values = self._values(genomes) if values is None else values
        kept: list[int] = []
        for front in fronts(values):
            order = (-crowding(values[front])).argsort(kind="stable")
            kept += front[order].tolist()
            if len(kept) >= self.population:
                break
        return [genomes[index] for index in kept[: self.population]]

    def _children(self, parents: Sequence[Genome], values: np.ndarray) -> list[Genome]:
        """As many children as parents, of winners of tournaments between two.

        Genes of two parents are crossed (simulated binary crossover, rounded). A gene mutates once a genome in the
        mean, and is then drawn anew: a polynomial mutation, as others take, hardly moves a gene of two values.
        """
        rank, alone = np.empty(len(parents)), np.empty(len(parents))
        for number, front in enumerate(fronts(values)):
            rank[front], alone[front] = number, crowding(values[front])
        genes, children = np.array(parents), []
        while len(children) < len(parents):
            pairs = self.source.integers(0, len(parents), (2, 2))
            first, second = (min(pair, key=lambda i: (rank[i], -alone[i])) for pair in pairs.tolist())
            for child in self._crossed(genes[first].astype(float), genes[second].astype(float)):
                anew = self.source.random(len(child)) < 1 / len(child)
                child = np.where(anew, self.source.integers(0, self.sizes), child)
                children.append(tuple(int(gene) for gene in child))
        return children[: len(parents)]

    def _crossed(self, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
        if self.source.random() < CROSSOVER:
            u, swap = self.source.random(len(first)), self.source.random(len(first)) < 0.5
            spread = np.where(u <= 0.5, 2 * u, 1 / (2 * (1 - u))) ** (1 / (CROSSOVER_ETA + 1))
            middle, half = (first + second) / 2, spread * (second - first) / 2
            first, second = middle - np.where(swap, -half, half), middle + np.where(swap, -half, half)
        return [np.rint(child).clip(0, self.sizes - 1) for child in (first, second)]


def fitted(genomes: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Predictors of the values (N, M) of genomes (N, G), one a way: ridge regression or support vectors, whichever has
    the smaller relative error on what it has not seen."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    kinds: list[tuple[Any, dict[str, list[float]]]] = [
        (Ridge(), {"ridge__alpha": [0.1, 1.0, 10.0]}), (SVR(), {"svr__C": [1.0, 10.0, 100.0]}),
    ]  # fmt: skip
    models = []
    for column in values.T:
        mean, spread = column.mean(), column.std() or 1.0
        error = "neg_mean_absolute_percentage_error"
        tried = [
            GridSearchCV(make_pipeline(StandardScaler(), kind), grid, scoring=error, cv=3).fit(
                genomes, (column - mean) / spread + 10.0
            )
            for kind, grid in kinds
        ]
        models.append((max(tried, key=lambda one: one.best_score_), mean, spread))

    def predict(asked: np.ndarray) -> np.ndarray:
        return np.stack([(model.predict(asked) - 10.0) * spread + mean for model, mean, spread in models], 1)

    return predict

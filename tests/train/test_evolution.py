"""Genetic search and functional hashing: fronts, volumes, predictors, and candidates that are written otherwise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zoo.train.evolution import Search, crowding, fitted, fronts, hypervolume
from zoo.train.hashing import FunctionalCache, functional_hash


def worth(genome: tuple[int, ...]) -> tuple[float, float]:
    """A size, and an error that falls with it, more by some genes than by others."""
    weights = np.linspace(1, 3, len(genome))
    return float(sum(genome)), float(np.exp(-(weights * genome).sum() / 6))


def test_fronts_are_of_points_that_none_is_better_than():
    values = np.random.default_rng(0).integers(0, 6, (40, 2)).astype(float)
    found = fronts(values)
    assert sorted(np.concatenate(found).tolist()) == list(range(40))

    def better(i: int, j: int) -> bool:
        return bool((values[i] <= values[j]).all() and (values[i] < values[j]).any())

    for number, front in enumerate(found):
        assert not any(better(i, j) for i in front for j in front)
        assert number == 0 or all(any(better(i, j) for i in found[number - 1]) for j in front)


def test_crowding_and_volume_by_hand():
    values = np.array([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    assert crowding(values).tolist() == [math.inf, 3 / 4 + 3 / 4, 3 / 4 + 2 / 4, math.inf]
    assert hypervolume(values.tolist(), (5.0, 5.0)) == 1 * 1 + 2 * 3 + 1 * 4 + 1 * 5
    assert hypervolume([(1.0, 1.0), (2.0, 2.0), (6.0, 0.0)], (5.0, 5.0)) == 16.0


@pytest.mark.parametrize("way", ["random", "genetic", "linas"])
def test_a_search_is_its_seed_and_its_front_grows(way):
    volumes: list[float] = []

    def evaluate(genome: tuple[int, ...]) -> tuple[float, float]:
        volumes.append(hypervolume([*search.archive.values(), worth(genome)], (30.0, 1.1)))
        return worth(genome)

    for _ in range(2):
        search = Search([3] * 8, evaluate, population=8, seed=1)
        getattr(search, way)(20, **({"generations": 2} if way == "linas" else {}))
    assert len(search.archive) == 20 and volumes[:20] == volumes[20:] == sorted(volumes[:20])
    assert all(0 <= gene < 3 for genome in search.archive for gene in genome)
    front = search.front()
    assert all(front[genome] == worth(genome) for genome in front)
    assert [len(fronts(np.array(list(front.values()))))] == [1]


def test_it_is_better_than_chance_and_ends_with_the_space():
    found = {}
    for way in ("random", "genetic", "linas"):
        search = Search([4] * 8, worth, population=10, seed=0)
        getattr(search, way)(40)
        found[way] = hypervolume(list(search.archive.values()), (30.0, 1.1))
    assert found["linas"] > found["random"] and found["genetic"] > found["random"]
    for way in ("random", "genetic", "linas"):
        search = Search([2, 3], worth, population=4)
        getattr(search, way)(50)
        assert len(search.archive) == 6


def test_predictors_need_something_to_leave_out():
    with pytest.raises(ValueError, match="population must be at least 3"):
        Search([3] * 4, worth, population=2).linas(20)


def test_predictors_tell_what_they_have_not_seen():
    genomes = np.random.default_rng(0).integers(0, 4, (60, 6))
    values = np.array([worth(tuple(genome)) for genome in genomes])
    predicted = fitted(genomes[:40], values[:40])(genomes[40:])
    assert predicted.shape == (20, 2) and np.corrcoef(predicted[:, 1], values[40:, 1])[0, 1] > 0.7


def test_a_hash_is_of_the_first_bits_of_each_number():
    x = torch.tensor([1 / 3, -2.5, 0.0, math.nan], dtype=torch.float64)
    same = torch.tensor([1 / 3 + 2.0**-40, -2.5, -0.0, -math.nan], dtype=torch.float64)
    assert functional_hash(x) == functional_hash(same) != functional_hash(x, 52)
    assert functional_hash(same, 52) != functional_hash(x, 52)
    for other in (-x, x[:3], x.view(2, 2), x + 2.0**-20):
        assert functional_hash(other) != functional_hash(x)
    with pytest.raises(ValueError, match="mantissa must be 0 to 52 bits"):
        functional_hash(x, 53)


Program = tuple[str, ...]
INPUTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def outputs(program: Program) -> Tensor:
    """A stack machine: operands x0, x1, x2; what stands below the top in the end is dead code."""
    stack: list[Any] = []
    for word in program:
        if word in ("add", "mul"):
            a, b = stack.pop(), stack.pop()
            stack.append(a + b if word == "add" else a * b)
        else:
            stack.append(INPUTS[:, int(word[1])])
    return stack[-1]


def test_other_orders_and_dead_code_have_the_same_hash():
    same = [("x0", "x1", "add"), ("x1", "x0", "add"), ("x2", "x0", "x1", "add")]
    assert len({functional_hash(outputs(program)) for program in same}) == 1
    assert functional_hash(outputs(("x0", "x1", "mul"))) != functional_hash(outputs(same[0]))


def test_a_search_takes_the_same_way_and_evaluates_less():
    """Genes from the fourth on say nothing where the first one is 0."""

    def outputs(genome: tuple[int, ...]) -> Tensor:
        return torch.tensor([*genome[:3], *(genome[3:] if genome[0] else [0] * len(genome[3:]))], dtype=torch.float64)

    calls: list[tuple[int, ...]] = []

    def evaluate(genome: tuple[int, ...]) -> tuple[float, float]:
        calls.append(genome)
        return worth(tuple(int(gene) for gene in outputs(genome)))

    plain, cache = Search([2] * 8, evaluate, population=6), FunctionalCache(evaluate, outputs)
    plain.genetic(40)
    without = len(calls)
    cached = Search([2] * 8, cache, population=6)
    cached.genetic(40)
    assert list(plain.archive.items()) == list(cached.archive.items())
    assert without == cache.asked == 40 and cache.evaluated == len(calls) - 40 < 36
    assert cache.skipped == pytest.approx(1 - cache.evaluated / 40)


def test_noisy_values_are_evaluated_again_and_may_be_forgotten():
    values = iter(range(100))
    cache = FunctionalCache(lambda _: (float(next(values)),), lambda _: torch.ones(2), most=3)
    assert [cache("x")[0] for _ in range(5)] == [0.0, 0.5, 1.0, 1.0, 1.0] and cache.evaluated == 3
    cache = FunctionalCache(lambda _: (float(next(values)),), lambda _: torch.ones(2), forget=1.0)
    assert [cache("x")[0] for _ in range(4)] == [3.0, 3.0, 4.0, 4.0]
    with pytest.raises(ValueError, match="forget must be in"):
        FunctionalCache(lambda _: (0.0,), lambda _: torch.ones(2), forget=2.0)

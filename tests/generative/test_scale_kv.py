"""ScaleKV: with room for everything it is plain decoding, what is kept follows from the window's attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.generative import Collaboration, ScaleKV, selectivity
from zoo.generative.adaptive import Past
from zoo.generative.scale_kv import Kept, divided, histories, middles
from zoo.registry import lookup

SCALES = (1, 2, 3, 5)  # 1, 4, 9 and 25 tokens


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made: Any = zoo.create_model("next_scale_nano", dtype=torch.float64, dim=32, depth=3, scales=SCALES).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_room_for_everything_is_plain_decoding_bit_for_bit(model, guidance):
    classes, options = torch.tensor([1, 7]), {"temperature": 0, "guidance": guidance}
    plain = model.sample(2, classes=classes, **options)
    for cache in (
        ScaleKV.uniform(model.config, 1.0, window=2),
        ScaleKV.calibrated(model, plain, classes, 1.0, drafters=3, window=2),
        ScaleKV(((1, 5, 14),) * 3, window=4),
    ):
        seen: list[list[torch.Tensor]] = [[], []]
        for found, pasts in zip(seen, (None, cache.pasts(model)), strict=True):

            def choose(logits: torch.Tensor, found: list[torch.Tensor] = found) -> torch.Tensor:
                found.append(logits)
                return logits.argmax(-1)

            model.decode(2, choose, classes=classes, guidance=guidance, pasts=pasts)
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
        assert torch.equal(model.sample(2, classes=classes, cache=cache, **options), plain)


def test_kept_are_the_window_and_what_it_looks_at_most():
    """Against loops over heads and keys."""
    torch.manual_seed(1)
    past, held, budget = Kept(budgets=(1, 5, 9), sides=SCALES, window=2, pool=3), 14, 9
    key, value, query = torch.randn(3, 2, 4, held, 6, dtype=torch.float64)
    past.extend(key, value)
    past.look(query)
    past.end(2)
    assert past.key is not None and past.value is not None and past.key.shape == (2, 4, budget, 6)
    window = [5 + place for place in (0, 2, 6, 8)]  # of the 3 x 3 map: the middles of a 2 x 2 grid
    for row in range(2):
        for head in range(4):
            law = [(query[row, head, w] @ key[row, head].T / 6**0.5).softmax(-1) for w in window]
            mass = sum(law)
            pooled = [
                (sum(mass[j] for j in near) / len(near)).item()
                for near in ([j for j in (i - 1, i, i + 1) if 0 <= j < held] for i in range(held))
            ]
            rest = sorted(set(range(held)) - set(window), key=lambda i: -pooled[i])[: budget - 4]
            kept = sorted(window + rest)
            assert torch.equal(past.key[row, head], key[row, head, kept])
            assert torch.equal(past.value[row, head], value[row, head, kept])


def test_middles_of_a_grid():
    assert middles(8, 4).tolist() == [8 * r + c for r in (1, 3, 5, 7) for c in (1, 3, 5, 7)]
    assert middles(3, 4).tolist() == list(range(9))


def test_no_more_is_held_than_promised_and_bytes_are_as_allocated(model, monkeypatch):
    """Early scales fit and are exact; a layer holds its budget and the map that it reads."""
    cache = ScaleKV(((1, 5, 6), (1, 5, 10), (1, 4, 14)), window=2)
    logits: dict[str, list[torch.Tensor]] = {"plain": [], "less": []}
    pasts = cache.pasts(model)
    seen = []
    end = Kept.end
    monkeypatch.setattr(Kept, "end", lambda self, scale: (end(self, scale), seen.append(self.nbytes)))
    given = model.sample(3, temperature=0)
    for name, held in (("plain", None), ("less", pasts)):
        maps = iter(given.split(model.config.sizes, 2))
        model.decode(3, lambda x, n=name, m=maps: (logits[n].append(x), next(m))[1], pasts=held)
    number = 2 * 3 * 32 * 8  # keys and values of three images of width 32 in float64
    assert seen[:6] == [number * n for n in (1, 1, 1, 5, 5, 4)] and seen[6:9] == [number * n for n in (6, 10, 13)]
    assert [past.peak for past in pasts] == [number * (n + 25) for n in (6, 10, 13)]
    assert cache.numbers(model.config) == 2 * 32 * (6 + 10 + 14)
    for scale in range(2):  # nothing is missed before the second scale's keys are
        assert torch.equal(logits["plain"][scale], logits["less"][scale])
    assert (logits["plain"][3] - logits["less"][3]).abs().max() > 1e-6


def test_selectivity_written_out(model):
    """From the attention of the parallel form."""
    tokens, classes = torch.randint(16, (4, 2, 39)), torch.tensor([0, 3, 5, 5])
    found, laws = selectivity(model, tokens, classes, top=3), []
    for block in model.blocks:

        def look(layer: Any, args: Any, output: Any) -> None:
            q, k, _ = layer.qkv(args[0]).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            laws.append((q @ k.mT / 8**0.5).masked_fill(~args[1], -torch.inf).softmax(-1))

        block.attn.register_forward_hook(look)
    model(tokens, classes=classes)
    for block in model.blocks:
        block.attn._forward_hooks.clear()
    start = 1
    for place, size in enumerate((4, 9, 25)):
        for layer, law in enumerate(laws):
            rows = law[:, :, start : start + size]
            current = rows[..., start : start + size].sum(-1).mean()
            history = rows[..., :start].sort(-1, descending=True).values[..., :3].sum(-1).mean()
            torch.testing.assert_close(found[layer, place], current * history)
        start += size


def test_budgets_have_the_mean_of_uniform_ones():
    config: Any = lookup("next_scale_shapes_nano").configure()
    drafting = torch.zeros(config.depth, len(config.sizes) - 1, dtype=torch.bool)
    drafting[0], drafting[2, 3:] = True, True
    budget = 10
    budgets = torch.tensor(divided(config, drafting, budget, (1.0, 0.5), 2))
    held = torch.tensor(histories(config))
    assert (budgets <= held).all()
    for place, (column, most) in enumerate(zip(budgets.T, held.tolist(), strict=True)):
        mean = min(budget, most)
        assert mean * config.depth - config.depth < column.sum() <= mean * config.depth
        drafts, rest = column[drafting[:, place]], column[~drafting[:, place]]
        assert most <= budget or drafts.min() > budget > rest.max()
    none = divided(config, torch.zeros_like(drafting), budget, (1.0, 0.3), 2)
    assert none == ScaleKV.uniform(config, budget / 66, window=2).budgets


def test_the_lowest_pairs_are_drafters(model, monkeypatch):
    index = torch.tensor([[0.5, 0.1, 0.4], [0.1, 0.5, 0.5], [0.5, 0.5, 0.6]])
    monkeypatch.setattr("zoo.generative.scale_kv.selectivity", lambda *_: index.double())
    cache = ScaleKV.calibrated(model, torch.zeros(1, 2, 39), None, 10 / 14, drafters=2, refiners=(0.5, 0.5), window=2)
    budgets = torch.tensor(cache.budgets)
    assert budgets[:, 2].tolist() == [10, 10, 10]  # no drafter there: all alike
    assert budgets[:, 0].tolist() == [1, 1, 1] and budgets[:, 1].tolist() == [5, 5, 5]  # all that there is


def test_a_refiner_of_coarse_maps_reads_them_whole(model):
    """Two models and few keys together: tokens that are given are read at once and kept by the same rule."""
    plain = Collaboration(model, model, 2).sample(2, temperature=0)
    full = ScaleKV.uniform(model.config, 1.0, window=2)
    begun = model.decode(2, lambda x: x.argmax(-1), given=plain[:, :, :5], pasts=full.pasts(model))
    assert torch.equal(begun, plain)
    assert isinstance(full.pasts(model)[0], Past)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: ScaleKV.uniform(m.config, 0.0), "a share must keep at least the window of 9 tokens of 14"),
        (lambda m: ScaleKV.uniform(m.config, 1.1), "at most all, got 1.1"),
        (lambda m: ScaleKV(((1, 5, 0),)), "budgets must be at least 1 token, got 0"),
        (lambda m: ScaleKV(((1, 5, 9),), pool=4), "window must be at least 1 and pool odd, got 4 and 4"),
        (lambda m: ScaleKV(((1, 5, 9),)).pasts(m), r"budgets must be of 3 layers and 3 scales, got 1 and \[3\]"),
        (
            lambda m: ScaleKV.calibrated(m, torch.zeros(1, 2, 39), None, 0.8, drafters=10),
            "drafters must be 0 to 9 and refiners fall from at most 1, got 10",
        ),
    ],
)  # fmt: skip
def test_errors(model, make, message):
    with pytest.raises(ValueError, match=message):
        make(model)

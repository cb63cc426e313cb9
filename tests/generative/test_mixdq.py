"""MixDQ: the integer programme, what one matrix does to images, and a first token that is left alone."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch

import zoo
from tests.cases.diffusion import change, reloaded, seen, small
from zoo.layers.quant import records, set_matrices
from zoo.quantize import METHODS, Calibration
from zoo.quantize.allocation import allocated, group_budgets
from zoo.quantize.mixdq import Judge
from zoo.quantize.similarity import ratio_db, ssim
from zoo.quantize.store import Store


def test_the_programme_finds_the_best_division():
    generator = torch.Generator().manual_seed(0)
    scores = {name: {b: torch.randn((), generator=generator).item() + b for b in (2, 4, 8)} for name in "abcdef"}
    sizes = {name: 10 + 7 * index for index, name in enumerate("abcdef")}
    for budget in (2.0, 3.3, 4.0, 6.0):
        found = allocated(scores, sizes, budget)
        assert found is not None

        def total(bits: Any) -> float:
            return sum(scores[name][b] for name, b in zip(scores, bits, strict=True))

        most = budget * sum(sizes.values())
        able = [
            bits
            for bits in itertools.product((2, 4, 8), repeat=6)
            if sum(b * n for b, n in zip(bits, sizes.values(), strict=True)) <= most
        ]
        assert total(found.values()) == pytest.approx(max(map(total, able)))
        assert sum(found[name] * sizes[name] for name in sizes) <= most
    rising = {name: {2: 1.0, 4: 2.0, 8: 3.0} for name in sizes}
    assert set(allocated(rising, sizes, 8.0).values()) == {8} and allocated(scores, sizes, 1.9) is None  # type: ignore[union-attr]
    assert allocated({}, sizes, 4.0) == {}


def test_budgets_of_two_groups_have_the_mean_of_one():
    for ratio in (0.5, 1.0, 1.4):
        content, quality = group_budgets(30, 70, 4.0, ratio)
        assert content == pytest.approx(ratio * quality) and 0.3 * content + 0.7 * quality == pytest.approx(4.0)
    assert group_budgets(0, 70, 4.0, 2.0) == (4.0, 4.0)


def test_similarity_is_that_of_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    y = torch.rand(3, 2, 16, 12, generator=generator)
    x = y + 0.2 * torch.randn(y.shape, generator=generator)
    span = (y.max() - y.min()).item()
    _, every = structural_similarity_index_measure(
        x.double(), y.double(), gaussian_kernel=False, kernel_size=7, data_range=span, return_full_image=True
    )
    wanted = every[..., 3:-3, 3:-3].flatten(1).mean(1)  # of windows within the image
    torch.testing.assert_close(ssim(x, y).double(), wanted, atol=1e-5, rtol=1e-5)
    assert ssim(y, y).tolist() == pytest.approx([1.0] * 3) and ssim(y[..., :4, :4], y[..., :4, :4]).shape == (3,)
    found = ratio_db(torch.tensor([1.1, 1.0]), torch.tensor([1.0, 0.0])).item()
    assert found == pytest.approx(-10 * math.log10(1.01), abs=1e-5)
    assert ratio_db(y, y).item() == 100.0


@pytest.fixture(scope="module")
def mixed() -> tuple[Any, Any, Calibration]:
    """A U-Net, as MixDQ rounds it, and the calibration."""
    model = small("unet_nano")
    calibration = Calibration.of_samples(model, count=4, steps=2)
    return (
        model,
        zoo.quantize(copy.deepcopy(model), "mixdq", bits=4, activation_bits=8, calibration=calibration),
        calibration,
    )


def test_bits_are_within_the_budget_and_no_worse_than_the_same_for_all(mixed):
    model, found, calibration = mixed
    held = {name: (record.format.bits, record.shape.numel()) for name, record in records(found).items()}
    assert sum(b * n for b, n in held.values()) <= 4 * sum(n for _, n in held.values())
    assert len({b for b, _ in held.values()}) > 1 and all(b in (2, 4, 8) for b, _ in held.values())
    assert {b for name, (b, _) in held.items() if "attn2" not in name and ".ff." not in name} <= {4, 8}
    same = zoo.quantize(copy.deepcopy(model), bits=4, group_size=1 << 20)
    weights = copy.deepcopy(model)
    for name, record in records(found).items():
        set_matrices(weights, name, record.dequantise())
    assert change(model, weights, calibration) <= change(model, same, calibration) * 1.0001
    first = {name for name, record in records(found).items() if record.format.inputs.first}
    assert first <= {name for name in held if ".attn2.to_k." in name or ".attn2.to_v." in name} and len(first) >= 5


def test_saved_and_reloaded_bit_equal(mixed, tmp_path):
    model, found, _ = mixed
    reloaded(found, tmp_path)
    assert 0 < change(model, found, seen(model, 1)) < 0.3


def test_a_large_first_token_is_left_alone():
    """As texts have it: with it in the grid of the others, these are rounded away."""
    model = small("unet_nano")
    with torch.no_grad():
        model.classes.weight[:, :8] += 60.0
    layer = "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k"
    judge, context = Judge(model, seen(model)), model.classes(torch.arange(3)).view(3, 4, 8)
    off = []
    for first in (1, 0):
        method: Any = METHODS["mixdq"](first=first, whole=0.0)
        found = method._grids(judge, [layer], Store(None, {}), 4)[layer]
        rounded = found["inputs"].rounded(context, 4, found["grid"])
        off.append((rounded - context)[:, 1:].norm())
        assert torch.equal(rounded[:, 0], context[:, 0]) == (first == 1)
    assert off[0] < 0.3 * off[1]


def test_the_inputs_that_suffer_most_stay():
    model = small("dit_nano")
    found = zoo.quantize(model, "mixdq", activation_bits=4, whole=0.3, calibration=seen(model))
    linears = [record for name, record in records(found).items() if name != "classes.weight"]
    left = [record for record in linears if record.format.activation_bits is None]
    assert len(left) == -(-3 * len(linears) // 10)


def test_scores_are_of_one_weight_and_the_model_is_left_as_it_was():
    model = small("unet_nano")
    method: Any = METHODS["mixdq"]()
    judge, before = Judge(model, seen(model)), copy.deepcopy(model.state_dict())
    scores = [
        method._scores(judge, name)
        for name in ("conv_in.weight", "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2.weight")
    ]
    assert [list(found) for found in scores] == [["4", "8"], ["2", "4", "8"]]
    assert scores[0]["4"] < scores[0]["8"] and scores[1]["2"] < scores[1]["8"] <= 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("method", "options", "message"), [
    ("mixdq", {"widths": (2, 9)}, "widths must hold bits from 1 to 8"),
    ("mixdq", {"whole": 2.0}, "ratios must be above 0, whole a share"),
    ("mixdq", {"budget": 1.5}, r"no division into \(2, 4, 8\) and \(4, 8\) bits has a mean of at most 1.5"),
])  # fmt: skip
def test_what_is_refused(method, options, message):
    model = small("dit_nano")
    with pytest.raises(ValueError, match=message):
        zoo.quantize(model, method, calibration=seen(model), **options)
    assert not records(model)

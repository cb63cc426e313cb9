"""Masked weights: what they compute and learn, how masks move, that they save, load and end, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.cli import main
from zoo.layers.sparse import Pattern, SparseMatrix
from zoo.layers.sparse.masks import Evolving, Mask, Shrinking, masks, weakest
from zoo.masks import ISSP, SPARSITIES, Masks, Pruned

NAMES = ["transformer_nano", "moe_nano", "vovnet_nano"]


def inputs(model: Any, seed: int = 0) -> Tensor:
    generator, config = torch.Generator().manual_seed(seed), model.config
    if hasattr(config, "vocab_size"):
        return torch.randint(0, config.vocab_size, (2, 12), generator=generator)
    return torch.randn(2, config.in_chans, *config.image_shape, generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(inputs(model)).float().square().mean().backward()
    optimizer.step()
    zoo.after_step(model)


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_saved_and_what_is_left_is_what_computes(name, tmp_path):
    """Of linear layers, experts and convolutions: counts, learning, reloading bit-equal, ending."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, changes=[{"kind": "pruned", "ratio": 0.7}]).train()
    held = masks(model)
    before = {key: mask.mask.clone() for key, mask in held.items()}
    for mask in before.values():
        each = mask if name == "moe_nano" and mask.dim() == 3 else mask[None]
        assert all(int(part.sum()) == round(0.3 * part.numel()) for part in each)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        step(model, optimizer)
    assert all(torch.equal(mask.mask, before[key]) for key, mask in masks(model).items())
    model.eval()
    x = inputs(model)
    with torch.no_grad():
        found = model(x)
        zoo.save_model(model, tmp_path)
        again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
        assert torch.equal(again(x), found)
        assert all(torch.equal(mask.mask, before[key]) for key, mask in masks(again).items())
        plain = zoo.settle(again)
        assert not zoo.changes.changes_of(plain) and torch.equal(plain(x), found)
        for key, mask in before.items():
            assert not plain.get_parameter(key)[~mask].any() and plain.get_parameter(key)[mask].all()


@pytest.mark.parametrize("name", ["transformer_nano", "moe_nano"])
@torch.no_grad()
def test_what_is_left_becomes_records(name):
    model: Any = zoo.mask_weights(zoo.create_model(name), "pruned", ratio=0.7).eval()
    x, kept = inputs(model), {key: mask.mask.clone() for key, mask in masks(model).items()}
    found = model(x)
    torch.testing.assert_close(zoo.sparsify(zoo.settle(model), sparsity=0.7)(x), found, rtol=1e-4, atol=1e-5)
    records = {key: part for key, part in model.named_modules() if isinstance(part, SparseMatrix)}
    assert records.keys() == kept.keys()
    assert all(torch.equal(part.dense() != 0, _rows(kept[key])) for key, part in records.items())


def _rows(mask: Tensor) -> Tensor:
    return mask.mT if mask.dim() == 3 else mask


def test_a_mask_hides_numbers_and_their_gradients():
    mask, w = Mask(torch.zeros(4, 6), Pattern("row", 0.5)), torch.randn(4, 6, requires_grad=True)
    assert torch.equal(mask(w), w)
    mask.keep(w.abs())
    kept = w.detach().abs() >= w.detach().abs().topk(3).values[:, -1:]
    assert torch.equal(mask.mask, kept) and torch.equal(mask(w), torch.where(kept, w, 0))
    mask(w).sum().backward()
    assert torch.equal(w.grad, kept.float())


def test_soft_shrinkage_by_hand():
    """What is small at each step decays by 0.95; what grows is let go on; at the end the mask is exact."""
    w = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    mask = Shrinking(w, Pattern("unstructured", 0.5), False, 0.95, 4)
    mask.follow(w)
    assert w.tolist() == [[0.95, 2 * 0.95, 3.0, 4.0]] and mask.mask.all()
    w[0, 0], w[0, 3] = 5.0, 0.5
    mask.follow(w)
    assert w.tolist() == [[5.0, 2 * 0.95**2, 3.0, 0.5 * 0.95]]
    mask.follow(w)
    torch.testing.assert_close(w[0, 1], torch.tensor(2 * 0.95**3, dtype=torch.float64))
    mask.follow(w)
    assert mask.mask.tolist() == [[True, False, True, False]]
    kept = w.clone()
    mask.follow(w)
    assert torch.equal(w, kept) and int(mask.done) == 5


@pytest.mark.parametrize(("shrink", "zeros"), [(0.0, 6), (1.0, 0)])
def test_the_ends_are_hard_thresholds_and_one_shot(shrink, zeros):
    w = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    start, mask = w.clone(), Shrinking(w, Pattern("2:4"), False, shrink, 2)
    mask.follow(w)
    assert int((w == 0).sum()) == zeros and torch.equal(w[w != 0], start[w != 0])
    mask.follow(w)
    assert (mask.mask.sum(1) == 2).all() and torch.equal(mask.mask, Pattern("2:4").choose(start.abs()))


def test_gradients_are_dense_while_numbers_shrink():
    model: Any = zoo.mask_weights(zoo.create_model("vit_nano").train(), "iss_p", ratio=0.8, steps=2)
    optimizer, learns = torch.optim.SGD(model.parameters(), lr=1e-2), {}
    for turn in range(3):
        step(model, optimizer)
        for key, mask in masks(model).items():
            layer: Any = model.get_submodule(key.rpartition(".")[0])
            learns[turn, key] = (layer.parametrizations.weight.original.grad != 0).float().mean().item()
            assert mask.mask.all() if turn == 0 else int(mask.mask.sum()) == round(0.2 * mask.mask.numel())
    ends = [max(share for (turn, _), share in learns.items() if turn == wanted) for wanted in (1, 2)]
    assert ends[0] > 0.9 and ends[1] <= 0.21


def test_sharded_weights_are_refused():
    model: Any = zoo.mask_weights(zoo.create_model("vit_nano", depth=1), "iss_p")
    held = model.blocks[0].mlp.fc1.parametrizations.weight.original
    held.full_tensor = lambda: held  # as a DTensor has it
    with pytest.raises(ValueError, match="masks that move need whole weights, these are sharded: train by DDP"):
        zoo.after_step(model)


def test_evolution_keeps_count_and_replaces_the_weakest():
    w = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    options: Any = {"zeta": 0.3, "every": 2, "evolutions": 2, "seed": 1}
    mask, twin = Evolving(w, 100, False, **options), Evolving(w, 100, False, **options)
    first, before = mask.mask.clone(), w.clone()
    assert int(first.sum()) == 100 and torch.equal(first, twin.mask)
    mask.follow(w)
    assert torch.equal(mask.mask, first) and torch.equal(w, before)
    gone = weakest(before.flatten(), first.flatten(), 0.3)
    positive, negative = (int(((before * sign > 0) & first).sum()) for sign in (1, -1))
    assert len(gone) == int(0.3 * positive) + int(0.3 * negative)
    kept = first.clone()
    kept.view(-1)[gone] = False
    for sign in (1, -1):
        side = before * sign > 0
        assert before[kept & side].abs().min() >= before[first & ~kept & side].abs().max()
    mask.follow(w)
    assert int(mask.mask.sum()) == 100 and mask.mask[kept].all() and torch.equal(w[kept], before[kept])
    new = mask.mask & ~kept
    assert int(new.sum()) == len(gone) and 0 < w[new].abs().max() < 0.5
    twin.load_state_dict({"mask": first, "done": torch.tensor(1)})
    other = before.clone()
    twin.follow(other)
    assert torch.equal(twin.mask, mask.mask) and torch.equal(other, w)
    for _ in range(2):
        mask.follow(w)
    second = mask.mask.clone()
    assert not torch.equal(second, twin.mask)
    for _ in range(2):
        mask.follow(w)
    assert torch.equal(mask.mask, second), "two evolutions at most"


def test_all_links_are_there_where_epsilon_is_large():
    model: Any = zoo.mask_weights(zoo.create_model("moe_nano"), "evolution", epsilon=1e9)
    assert all(mask.mask.all() for mask in masks(model).values())
    few = zoo.mask_weights(zoo.create_model("moe_nano"), "evolution", epsilon=1.0)
    for mask in masks(few).values():
        each = mask.mask if mask.mirrored else mask.mask[None]
        assert all(int(part.sum()) == sum(part.shape) for part in each.unbind() if part.numel() > sum(part.shape))


def test_heads_and_what_is_skipped():
    model = zoo.create_model("vit_nano")
    every = {name for name, p in model.named_parameters() if p.dim() > 1 and name.endswith("weight")}
    held = masks(zoo.mask_weights(model, "pruned", skip=("blocks.0.*",)))
    assert held and "head.weight" not in held and not [name for name in held if name.startswith("blocks.0.")]
    assert set(held) < every
    assert "head.weight" in masks(zoo.mask_weights(zoo.create_model("vit_nano"), "pruned", head=True))
    tied = masks(zoo.mask_weights(zoo.create_model("transformer_nano"), "pruned", head=True))
    assert not {"head.weight", "embedding.weight"} & set(tied)


def test_the_command_ends_masks(tmp_path):
    model: Any = zoo.mask_weights(zoo.create_model("transformer_nano"), "pruned", ratio=0.8).eval()
    zoo.save_model(model, tmp_path / "trained")
    assert main(["sparsify", str(tmp_path / "trained"), str(tmp_path / "small"), "--sparsity", "0.8"]) == 0
    small: Any = zoo.create_model(f"local-dir:{tmp_path / 'small'}").eval()
    with torch.no_grad():
        torch.testing.assert_close(small(inputs(model)), model(inputs(model)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: zoo.mask_weights(model, "isp"), "unknown sparsity 'isp', did you mean 'iss_p'"),
        (lambda model: zoo.mask_weights(model, "iss_p", rate=1), "has no option 'rate', did you mean 'ratio'"),
        (lambda model: zoo.mask_weights(model, ISSP(), ratio=0.5), "options go with a method's name"),
        (lambda model: zoo.mask_weights(model, "iss_p", ratio=1.0), r"sparsity must lie in \[0, 1\), got 1.0"),
        (lambda model: zoo.mask_weights(model, "iss_p", steps=0), "steps must be at least 1, got 0"),
        (lambda model: zoo.mask_weights(model, "iss_p", shrink=1.5), r"shrink must lie in \[0, 1\], got 1.5"),
        (lambda model: zoo.mask_weights(model, "pruned", pattern="2:7"), "takes rows of a multiple of 7 columns"),
        (lambda model: zoo.mask_weights(model, "evolution", zeta=1.0), r"zeta in \(0, 1\)"),
        (lambda model: zoo.mask_weights(model, "pruned", skip=["block.*"]), "skip names no weight by 'block"),
        (lambda model: zoo.mask_weights(model, "pruned", skip=["*"]), "skip leaves no weight"),
        (
            lambda model: zoo.mask_weights(model, Pruned(skip=[0])),
            "skip must be a pattern of names or several",
        ),
        (lambda model: zoo.mask_weights(zoo.mask_weights(model, "pruned"), "pruned"), "pruned takes plain weights"),
        (lambda model: zoo.mask_weights(zoo.noisy_weights(model), "pruned"), r"masked, rounded or noisy: zoo\.settle"),
        (lambda model: zoo.round_weights(zoo.mask_weights(model, "pruned")), "trained by pruned already"),
        (lambda model: zoo.quantize(zoo.mask_weights(model, "pruned")), r"bits or numbers: zoo\.settle\(model\)"),
        (lambda model: zoo.sparsify(zoo.mask_weights(model, "pruned")), r"learns with masks: zoo\.settle"),
        (lambda model: zoo.mask_weights(zoo.quantize(model), "pruned"), r"pruned comes before zoo\.factorize"),
        (lambda model: zoo.mask_weights(zoo.adapt(model, "paca"), "pruned"), "pruned comes before adapters"),
        (lambda model: zoo.adapt(zoo.mask_weights(model, "pruned"), "lora"), "perp keeps zeros"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(zoo.create_model("transformer_nano"))


def test_what_does_not_fit_changes_nothing():
    model = zoo.create_model("vovnet_nano")
    before = {key: id(parameter) for key, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=r"multiple of 4 columns, got \d+; skip it"):
        zoo.mask_weights(model, "pruned", pattern="2:4")
    assert {key: id(parameter) for key, parameter in model.named_parameters()} == before
    with pytest.raises(ValueError, match="nothing to mask"):
        zoo.mask_weights(nn.ReLU(), "pruned")


def test_methods_are_dataclasses_of_documented_fields():
    for kind, method in SPARSITIES.items():
        assert method.kind == kind and issubclass(method, Masks) and zoo.config.describe_fields(method)

"""Early exits: closed and open, tokens one by one as all at once, what later blocks remember, calibration, folders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.exits import geometric_shares
from zoo.kernels.flops import flop_counter
from zoo.layers.depth.exits import CLOSED, OPEN, solve_threshold
from zoo.train.tasks import ImageClassification, LanguageModeling

TOKENS = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(0))


def language(name: str = "transformer_nano", after: tuple[int, ...] = (0, 1), **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.add_exits(zoo.create_model(name).double().eval(), after, **options)


def vision(name: str = "vit_nano", after: tuple[int, ...] = (1, 3), **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.add_exits(zoo.create_model(name).eval(), after, **options)


def some_leave(model: Any, tokens: Tensor) -> None:
    """Thresholds between two distances, so that rounding decides nothing."""
    for exit in range(len(model.exits.after)):
        model.exits.recorded = {exit: []}
        model(tokens)
        distances = torch.cat(model.exits.recorded[exit]).sort().values
        model.exits.recorded = None
        model.exits.thresholds[exit] = distances[len(distances) // 3 :][:2].mean()


@pytest.mark.parametrize("measure", ["mean", "doubt"])
def test_closed_is_the_model_and_open_its_first_exit(measure):
    plain, tokens = zoo.create_model("transformer_nano").eval(), TOKENS
    closed: Any = zoo.add_exits(zoo.create_model("transformer_nano").eval(), (1,), measure=measure)
    closed.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(closed(tokens), plain(tokens))
    closed.exits.thresholds.fill_(OPEN)
    x = plain.blocks[1](plain.blocks[0](plain.embed(tokens)))
    assert torch.equal(closed(tokens), plain.head(plain.norm(x)))
    assert closed.exits.activity["left"].tolist() == [48, 0]

    images = torch.randn(3, 1, 8, 8)
    vit = vision(measure=measure)
    assert torch.equal(vit(images), vit.forward_head(vit.forward_features(images)))
    vit.exits.thresholds.fill_(OPEN)
    features = vit.blocks[1](vit.blocks[0](vit.forward_embed(images)))
    assert torch.equal(vit(images), vit.exits.heads[0](features[:, 1:]))


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "smallthinker_nano", "rwkv7_nano"])
def test_tokens_leave_one_by_one_as_all_at_once(name):
    """Beside the rule written out: blocks over everything, in which those that have left keep their value."""
    model = language(name, after=(0,))
    some_leave(model, TOKENS)
    found, left = model(TOKENS), model.exits.activity["left"]
    assert (left > 0).all() and left.sum() == 48

    x = model.embed(TOKENS)
    y = model.blocks[0](x)
    p, before = (model.head(model.forward_norm(t)).softmax(-1) for t in (y, x))
    gone = (p - before).abs().mean(-1) <= model.exits.thresholds[0]
    for block in model.blocks[1:]:
        y = torch.where(gone[..., None], y, block(y))
    torch.testing.assert_close(found, model.head(model.forward_norm(y)), atol=1e-12, rtol=1e-12)

    for rows in ([0], [0, 1]):
        state = model.init_state(len(rows))
        steps = [model(TOKENS[rows, :5], state), *(model(TOKENS[rows, t : t + 1], state) for t in range(5, 24))]
        torch.testing.assert_close(torch.cat(steps, 1), found[rows], atol=1e-11, rtol=1e-11)


def test_later_blocks_remember_tokens_that_left():
    model = language()
    model.exits.thresholds.fill_(OPEN)
    state = model.init_state(2)
    model(TOKENS, state)
    left = model.blocks[0](model.embed(TOKENS))
    for block, held in zip(model.blocks[1:], state[1:], strict=True):
        mixer = block.mixer
        k, v = (proj(block.norm(left)).unflatten(-1, (-1, mixer.head_dim)) for proj in (mixer.k_proj, mixer.v_proj))
        (k,) = mixer.rotated(torch.arange(24), k)
        torch.testing.assert_close(held.keys().key, k.transpose(1, 2))
        torch.testing.assert_close(held.keys().value, v.transpose(1, 2))
        assert held.seen == 24

    model.exits.thresholds.fill_(CLOSED)  # a token at full depth after those
    new = torch.tensor([[7], [8]])
    x = model.embed(torch.cat([TOKENS, new], 1))
    x = model.blocks[0](x)
    for block in model.blocks[1:]:
        x = torch.cat([x[:, :-1], block(x)[:, -1:]], 1)
    torch.testing.assert_close(model(new, state)[:, 0], model.head(model.norm(x[:, -1])))


def test_padding_neither_leaves_nor_holds_others():
    model = language()
    some_leave(model, TOKENS)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), TOKENS], 1)
    ids = torch.cat([torch.full((2, 3), -1), torch.zeros(2, 24, dtype=torch.int64)], 1)
    expected = model(TOKENS)
    torch.testing.assert_close(model(padded, model.init_state(2), seq_idx=ids)[:, 3:], expected)
    assert model.exits.activity["left"].sum() == 48


def test_a_step_in_which_all_leave_computes_keys_and_values_alone():
    model, token = language(after=(1,)).float(), TOKENS[:1, :1]
    model.exits.thresholds.fill_(OPEN)
    state = model.init_state(1)
    model(TOKENS[:1], state)
    with flop_counter(display=False) as counter:
        model(token, state)
    c, attended = model.config, 2 * 2 * 128 * 25
    block = 2 * (2 * c.dim**2 + 2 * c.dim * 64 + 3 * c.dim * c.mlp_dim)
    expected = 2 * (block + attended) + 2 * (2 * c.dim * 64) + 3 * 2 * c.dim * c.vocab_size
    assert counter.get_total_flops() == expected


def test_generation_with_exits_is_the_loop_over_them():
    model, prompt = language(), TOKENS[:1, :6]
    some_leave(model, TOKENS)
    text = zoo.generate(model, prompt, 8, temperature=0)
    for end in range(6, 14):
        assert model(text[:, :end])[0, -1].argmax() == text[0, end]
    with pytest.raises(ValueError, match="PromptDistill ends tokens between blocks, and so do exits: take one of them"):
        zoo.generate(model, prompt, 8, cache="prompt_distill")


def test_images_leave_the_batch():
    model, images = vision(after=(0, 2, 3)), torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = zoo.calibrate_exits(model, images.split(16), shares=[0.3, 0.2, 0.0, 0.5])
    assert found.shares == [0.3, 0.2, 0.0, 0.5] and found.thresholds[2] < 0
    logits = model(images)
    assert model.exits.activity["left"].tolist() == [12, 8, 0, 20]
    x, gone = model.forward_embed(images), torch.zeros(40, dtype=torch.bool)
    expected, before = torch.zeros(40, 10), model.exits.heads[0](x[:, 1:]).softmax(-1)
    for index, block in enumerate(model.blocks):
        x = block(x)
        if index in (0, 2):
            y = model.exits.heads[index // 2](x[:, 1:])
            distance = (y.softmax(-1) - before).abs().mean(-1)
            leaves, before = (distance <= model.exits.thresholds[index // 2]) & ~gone, y.softmax(-1)
            expected[leaves], gone = y[leaves], gone | leaves
    expected[~gone] = model.forward_head(model.norm(x))[~gone]
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["shvit_nano", "pcdarts_nano"])
def test_stages_have_exits_too(name):
    model, images = vision(name, after=(0,), measure="doubt"), torch.randn(10, 1, 8, 8)
    assert zoo.calibrate_exits(model, images, shares=[0.4, 0.6]).shares == [0.4, 0.6]
    both = model(images)
    model.exits.thresholds.fill_(CLOSED)
    full = model(images)
    model.exits.thresholds.fill_(OPEN)
    early = model(images)
    near = [((both - other).abs().amax(1) < 1e-4).sum().item() for other in (early, full)]
    assert near == [4, 6]


def test_thresholds_of_the_paper():
    """As the authors' solver finds them: the share of all items, from those that have not left before."""
    distances = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3])
    assert solve_threshold(distances, 2) == pytest.approx(0.2)
    assert solve_threshold(distances, 0) == CLOSED and solve_threshold(distances, 9) == 0.5
    model = language()
    found = zoo.calibrate_exits(model, [TOKENS[:1], TOKENS[1:]], shares=[0.25, 0.25, 0.5])
    assert found.shares == [0.25, 0.25, 0.5]
    model(TOKENS)
    assert model.exits.activity["left"].tolist() == [12, 12, 24]


def test_a_budget_is_spent():
    costs = [10.0, 20.0, 40.0]
    for budget in (11.0, 23.0, 39.0):
        q = geometric_shares(costs, budget)
        assert sum(share * cost for share, cost in zip(q, costs, strict=True)) == pytest.approx(budget)
        assert q[1] ** 2 == pytest.approx(q[0] * q[2])
    model, images = vision(), torch.randn(50, 1, 8, 8)
    costs = zoo.exit_costs(model, images[:2])
    with flop_counter(display=False) as counter:
        model.forward_head(model.forward_features(images[:1]))
    heads = 3 * 2 * 64 * 10  # the first is read twice
    assert costs[-1] == counter.get_total_flops() + heads and costs == sorted(costs)
    assert zoo.calibrate_exits(model, images, budget=0.7 * costs[-1]).flops == pytest.approx(0.7 * costs[-1], rel=0.05)


def test_training_draws_exits():
    model = language(sampling=0.5).train()
    LanguageModeling(model)
    model(TOKENS, labels=TOKENS).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    left = model.exits.activity["left"]
    assert left.sum() == 48 and (left > 0).all()
    model.exits.sampling = 0.0
    assert torch.equal(model(TOKENS), model.eval()(TOKENS))

    task = ImageClassification(vision(weight=0.5))
    task.configure_model()
    task.log_training = lambda loss, **_: loss
    task.training_step((torch.randn(64, 1, 8, 8), torch.arange(64) % 10), 0).backward()
    net: Any = task.trained
    assert net.auxiliary_logits[0] == 0.5 and net.auxiliary_logits[1].shape == (64, 10)
    assert all(p.grad is not None for p in net.parameters())
    net.reset_classifier(3)
    net.exits.thresholds.fill_(OPEN)
    assert net.eval()(torch.randn(1, 1, 8, 8)).shape == (1, 3)


def test_bundled_weights_get_exits_in_the_call_that_loads_them(tmp_path):
    change = {"kind": "exits", "after": [1], "measure": "doubt"}
    made: Any = zoo.create_model("transformer_nano", pretrained=True, changes=[change]).eval()
    plain: Any = zoo.create_model("transformer_nano", pretrained=True).eval()
    assert torch.equal(made(TOKENS), plain(TOKENS))
    zoo.save_model(made, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert again.exits.after == (1,) and torch.equal(again(TOKENS), plain(TOKENS))


@pytest.mark.parametrize("made", [language, vision])
def test_folders_keep_exits_and_thresholds(made, tmp_path):
    model = made().float()
    inputs = TOKENS if made is language else torch.randn(20, 1, 8, 8)
    zoo.calibrate_exits(model, inputs, shares=[0.5, 0.0, 0.5])
    zoo.save_model(model, tmp_path)
    loaded: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert torch.equal(loaded.exits.thresholds, model.exits.thresholds) and loaded.exits.thresholds[1] == CLOSED
    assert torch.equal(loaded(inputs), model(inputs))
    assert model.bfloat16().exits.thresholds.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer_nano", {"after": [2]}, r"after must hold numbers of blocks in \[0, 2\), in order, got \[2\]"),
        ("transformer_nano", {"after": [1, 0]}, r"in order, got \[1, 0\]"),
        ("transformer_nano", {"after": [0], "measure": "l1"}, "measure must be one of mean, l2, max, cosine, doubt"),
        ("mor_nano", {"after": [0]}, "between blocks that run one after the other; MoRLanguageModel's do not"),
        (
            "shvit_nano",
            {"after": [0]},
            "change their width, so the first exit has nothing to compare with: take measure",
        ),
        ("m3vit_nano", {"after": [0]}, "M3ViT goes its own way through its blocks"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.add_exits(zoo.create_model(name), **options)


def test_errors_of_use():
    with pytest.raises(TypeError, match="exits are for language models and image classifiers, got a S4TextClassifier"):
        zoo.add_exits(zoo.create_model("s4_text_nano"), [0])
    with pytest.raises(ValueError, match=r"the ViT has no exits: call zoo\.add_exits first"):
        zoo.calibrate_exits(zoo.create_model("vit_nano"), torch.randn(1, 1, 8, 8), budget=1.0)
    model, images = vision(), torch.randn(2, 1, 8, 8)
    with pytest.raises(ValueError, match="the model has exits already"):
        zoo.add_exits(model, [0])
    with pytest.raises(ValueError, match=r"shares must be 3 numbers of sum 1.*got \[0.5, 0.4\]"):
        zoo.calibrate_exits(model, images, shares=[0.5, 0.4])
    with pytest.raises(ValueError, match="a budget lies between the costs of the first exit and of the end"):
        zoo.calibrate_exits(model, images, budget=1.0)
    with pytest.raises(ValueError, match="give shares or a budget, got shares=None, budget=None"):
        zoo.calibrate_exits(model, images)

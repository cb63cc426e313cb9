"""What was learnt of heads is saved with the model, and policies ask for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.cache import Dense, DuoAttention, LServe, RazorAttention

GATES = ((0.125, 0.75), (0.9, 0.1))
SCORES = (((0.1, 0.1), (0.2, 0.1)), ((0.1, 0.3), (0.8, 0.2)))


def nano(name: str = "transformer_nano", **options: Any) -> Any:
    return zoo.create_model(name, depth=2, **options).eval()


def roles(model: Any, cache: Any) -> list[list[bool]]:
    """Which heads of each layer keep everything."""
    found = []
    for state in model.init_state(1, cache=cache):
        here = [False, False]
        for part, heads in zip(state.parts, state.heads, strict=True):
            for head in heads.tolist():
                here[head] = type(part.policy) is Dense
        found.append(here)
    return found


@torch.no_grad()
def test_heads_are_kept_with_the_model(tmp_path):
    model, tokens = nano(), torch.randint(0, 256, (1, 40))
    plain = model(tokens)
    assert zoo.keep_heads(zoo.keep_heads(model, gates=GATES), scores=SCORES) is model
    zoo.save_model(model, tmp_path / "saved")
    again: Any = zoo.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    assert torch.equal(again(tokens), plain)
    assert again.head_roles == {"gates": GATES, "scores": SCORES}
    assert roles(again, DuoAttention()) == roles(again, "duo_attention") == [[False, True], [True, False]]
    assert roles(again, RazorAttention(echo=0.25, induction=0.25)) == [[False, False], [True, True]]
    assert roles(nano(), DuoAttention()) == [[True, False]] * 2
    own = DuoAttention(((0.2, 0.1), (0.1, 0.2)))
    assert roles(again, own) == [[True, False], [False, True]]
    ours, asked = (LServe(gates, sink=1, recent=4, budget=16, page=4, logical=2) for gates in (GATES, None))
    first, second, default = (
        one(tokens, one.init_state(1, cache=cache)) for one, cache in ((model, ours), (again, asked), (nano(), asked))
    )
    assert torch.equal(first, second) and not torch.equal(first, default)


def test_learning_and_measuring_give_what_is_kept():
    model = nano("falcon_h1_nano")
    gates = zoo.cache.learn_gates(model, steps=1, length=12, passkeys=1, passkey_length=4, sink=1, recent=2)
    scores = zoo.cache.head_scores(model, copy=4, copies=2)
    zoo.keep_heads(model, gates=gates, scores=scores)
    model.init_state(1, cache=DuoAttention())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zoo.keep_heads(nano()), "give gates= or scores="),
        (lambda: zoo.keep_heads(nano(), gates=((0.1,), (0.2,))), r"key-value head, \[2, 2\]; got \[1, 1\]"),
        (lambda: zoo.keep_heads(nano(), scores=SCORES[:1]), r"scores must have a row a layer.*got \[2\]"),
        (lambda: zoo.keep_heads(nano("mamba_nano"), gates=GATES), "there is none: the states are MambaState"),
    ],
)
def test_wrong_heads_say_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Logits that are the same bits in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from cases.names import by_kind

MODELS = ["mamba2_nano", "transformer_nano"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return zoo.create_model(request.param, pretrained=True).eval()


def text(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape)


@torch.no_grad()
def test_logits_are_those_of_each_sequence_alone(model):
    """Of rows, of rows with padding wherever it stands, and of packed sequences."""
    tokens = text(3, 40)
    ids = torch.tensor([[0] * 25 + [1] * 15, [-1] * 9 + [4] * 31, [2] * 10 + [-1] * 5 + [2] * 20 + [-1] * 5])
    places = ((0, slice(0, 25)), (0, slice(25, 40)), (1, slice(9, 40)), (2, [*range(10), *range(15, 35)]))
    with zoo.batch_invariant(model):
        for row, logits in enumerate(model(tokens)):
            assert torch.equal(logits, model(tokens[row : row + 1])[0])
        found, last = model(tokens, seq_idx=ids), model(tokens, seq_idx=ids, logits_to_keep=7)
    for row, place in places:
        assert torch.equal(found[row, place], model(tokens[row : row + 1, place])[0])
    assert not found[1, :9].any() and last.shape == (3, 7, 256)
    torch.testing.assert_close(last, found[:, 33:], rtol=1e-4, atol=1e-4)  # the head of fewer rows


@pytest.mark.parametrize("name", by_kind(zoo.list_models("*_nano", task="language"), (*MODELS, "deepseek_nano")))
@torch.no_grad()
def test_logits_of_every_model_are_the_same_bits_in_batches_of_any_size(name):
    """Of prompts, and of two steps after them."""
    torch.manual_seed(0)
    model: Any = zoo.create_model(name).eval()
    tokens, found = text(5, 19), {}
    with zoo.batch_invariant(model):
        for size in (1, 2, 5):
            state = model.init_state(size)
            parts = [model(tokens[:size, part], state) for part in (slice(17), slice(17, 18), slice(18, 19))]
            found[size] = torch.cat([model(tokens[:size]), *parts], 1)
    assert torch.equal(found[1], found[2][:1]) and torch.equal(found[2], found[5][:2])


@torch.no_grad()
def test_states_go_on_row_by_row(model):
    """Prefilled with padding, reordered, taken back; their rows are those of the model's own states."""
    tokens, mask = text(2, 12), torch.tensor([[0] * 12, [-1] * 5 + [0] * 7])
    with zoo.batch_invariant(model):
        state = model.init_state(2, max_length=30)
        first = model(tokens, state, seq_idx=mask, logits_to_keep=1)
        state.reorder(torch.tensor([1, 0, 1]))
        state.commit()
        model(text(3, 2), state)
        state.rollback()
        later = model(tokens[[1, 0, 1], :1], state.clone())
    for row, source in enumerate((1, 0, 1)):
        alone, own = model.init_state(1, max_length=30), tokens[source : source + 1]
        assert torch.equal(model(own[:, 5 * source :], alone, logits_to_keep=1)[0], first[source])
        assert torch.equal(model(own[:, :1], alone)[0], later[row])
    assert not model.by_rows and state.nbytes == 3 * alone.nbytes


def test_samples_and_beams_of_lists(model):
    prompts = [[1, 2, 3], [4], [5, 6]]
    for options in ({"num_samples": 2}, {"num_beams": 2}):
        options |= {"temperature": 0, "log_probs": True}
        found = zoo.generate(model, prompts, 4, batch_invariant=True, **options)  # type: ignore[arg-type]
        alone = [zoo.generate(model, [prompt], 4, batch_invariant=True, **options) for prompt in prompts]  # type: ignore[arg-type]
        for index in range(2):
            one_by_one = [row for rows in alone for row in rows[index]]
            assert all(torch.equal(a, b) for a, b in zip(found[index], one_by_one, strict=True))


def test_what_does_not_go_with_it():
    model: Any = zoo.create_model("mamba_nano", depth=1)
    tokens, outside = text(2, 5), model.init_state(2)
    with zoo.batch_invariant(model):
        with pytest.raises(ValueError, match="leave out labels"):
            model(tokens, labels=tokens)
        with pytest.raises(ValueError, match=r"from model.init_state\(2\) there, got one made outside"):
            model(tokens, outside)
        with pytest.raises(ValueError, match=r"from model.init_state\(2\) there, got one of 3 rows"):
            model(tokens, model.init_state(3))
        with pytest.raises(ValueError, match=r"one sequence a row: seq_idx must be 0 .*, got 1"):
            model(tokens, model.init_state(2), seq_idx=torch.tensor([[0, 0, 1, 1, 1]] * 2))

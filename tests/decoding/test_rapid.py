"""RAPID: what the draft reads, and what becomes of the model's law."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from zoo.decoding import Rapid, shortened, transferred
from zoo.decoding.rapid import _RapidDrafting


def needle(length: int = 640, place: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """A text of chance, within which stands what it ends with."""
    text = torch.randint(256, (length,), generator=torch.Generator().manual_seed(0))
    text[place : place + 24] = text[-24:]
    return text, text[place : place + 24]


@pytest.mark.parametrize("scorer", ["lexical", "embedding"])
def test_the_chunks_most_like_the_end_are_kept_in_their_order(scorer):
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano")
    text, _ = needle()
    options = {"chunk": 32, "query": 24, "scorer": scorer}
    with torch.no_grad():
        found = shortened(model, text, budget=152, **options)
        assert len(found) == 24 + 4 * 32 and torch.equal(found[-24:], text[-24:])
        chunks = text[:608].view(-1, 32).tolist()
        kept = [chunks.index(chunk) for chunk in found[:-24].view(-1, 32).tolist()]
        assert kept == sorted(kept) and 6 in kept  # the chunk from 192 on
        assert torch.equal(shortened(model, text, budget=640, **options), text)
        assert torch.equal(shortened(model, text, budget=20, **options), text[-20:])


def test_the_text_is_that_of_the_model_alone_without_transfer():
    """Rows whose draft reads all of a prompt and a part of it."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", pretrained=True)
    prompts = [needle()[0][:100], [7, 8], needle()[0][200:270]]
    plain = zoo.generate(model, prompts, 20, temperature=0)
    for scorer in ("lexical", "embedding"):
        draft = Rapid(model, budget=48, chunk=8, query=16, scorer=scorer, confidence=0.0, length=4)
        found = zoo.generate(model, prompts, 20, temperature=0, draft=draft)
        assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))
        assert 0 < draft.counts.accepted < draft.counts.proposed


def test_transfer_moves_a_law_towards_the_drafts():
    """By the gradient of the cross-entropy with the draft's law, where that is large."""
    torch.manual_seed(0)
    logits, q = torch.randn(3, 9, dtype=torch.float64, requires_grad=True), torch.randn(3, 9).double().softmax(-1)
    p = logits.softmax(-1)
    torch.testing.assert_close(transferred(p, q, 0.0), p)
    torch.testing.assert_close(transferred(p, p, 7.0), p)
    (-(q * logits.log_softmax(-1)).sum()).backward()
    step = (logits - 3.0 * logits.grad).softmax(-1)  # pyright: ignore[reportOperatorIssue]
    torch.testing.assert_close(transferred(p, q, 3.0, share=0.0), step)
    two_p, two_q = torch.tensor([[0.6, 0.4]]), torch.tensor([[0.2, 0.8]])
    chances = [float(transferred(two_p, two_q, eta)[0, 1]) for eta in (0, 1, 5, 20)]
    assert chances == sorted(chances) and chances[0] == pytest.approx(0.4) and chances[-1] > 0.99
    masked = transferred(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.9, 0.05, 0.05]]), 2.0)[0]
    assert float(masked[1] / masked[2]) == pytest.approx(1.5)  # outside the mask as before


def test_with_transfer_a_greedy_text_takes_what_the_moved_law_has_as_its_likeliest(monkeypatch):
    """Beside the rule written out: a draft's token where the moved law agrees, the model's own where it does not."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", pretrained=True)
    other: Any = zoo.create_model("mamba2_nano", pretrained=True)
    prompt, eta = list(b"The import statement"), 20.0
    draft = Rapid(other, length=3, eta=eta, confidence=0.0)
    found = zoo.generate(model, [prompt], 40, temperature=0, draft=draft)[0].tolist()
    assert found != zoo.generate(model, [prompt], 40, temperature=0)[0].tolist()

    said, left = [*prompt, int(model.eval()(torch.tensor([prompt]))[0, -1].argmax())], 39
    other.eval()
    with torch.no_grad():
        while left:
            ahead = list(said)
            for _ in range(min(3, left - 1)):
                ahead.append(int(other(torch.tensor([ahead]))[0, -1].argmax()))
            p, q = (one(torch.tensor([ahead]))[0, len(said) - 1 :].softmax(-1) for one in (model, other))
            for index, token in enumerate([*ahead[len(said) :], None]):
                moved, own = int(transferred(p[index], q[index], eta).argmax()), int(p[index].argmax())
                said.append(token if token is not None and token == moved else own)
                left -= 1
                if token != moved:
                    break
    assert found == said


def test_with_transfer_drawn_tokens_follow_the_published_rule():
    """40 000 rows at once: accepted with min(1, p' / q), else from max(p - q, p - p', 0)."""
    count, generator = 40_000, torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model: Any = zoo.create_model("transformer_nano", depth=1)
    p, q = torch.randn(2, 5).softmax(-1)
    draft = Rapid(model, eta=2.0)
    options: Any = zoo.generate.__globals__["Options"](max_new_tokens=1, generator=generator)
    token = torch.multinomial(q.expand(count, -1), 1, generator=generator)[:, 0]
    laws = [q.expand(count, -1)]
    drafting: Any = _RapidDrafting(draft, model, options)
    proposal = type("P", (), {"tokens": [token], "laws": laws})()
    said, accepted = drafting.settled(0, p.log().expand(count, -1), p.expand(count, -1), proposal)
    moved = transferred(p[None], q[None], 2.0)[0]
    chance = torch.minimum(q, moved)
    rest = torch.maximum(p - q, p - moved).clamp(min=0)
    expected = count * (chance + (1 - chance.sum()) * rest / rest.sum())
    statistic = float(((said.bincount(minlength=5) - expected).square() / expected).sum())
    assert statistic < 18.47 and float(accepted.float().mean()) == pytest.approx(float(chance.sum()), abs=0.01)


def test_options_out_of_range():
    model: Any = zoo.create_model("transformer_nano", depth=1)
    for options, message in (
        ({"budget": 0}, "budget must be an integer of at least 1, got 0"),
        ({"scorer": "dense"}, "scorer must be one of lexical, embedding, got 'dense'"),
        ({"eta": -1.0}, "eta must not be negative, got -1.0"),
        ({"widths": (2, 2)}, r"RAPID drafts chains: leave out widths=\(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Rapid(model, **options)

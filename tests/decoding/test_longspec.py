"""LongSpec: what its layer says within a draft, how little it remembers, and how it is kept and trained."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch

import zoo
from zoo.checkpoints import bundled
from zoo.decoding import LongSpec, add_draft_layer
from zoo.decoding.draft_layer import draft_logits, draft_loss
from zoo.decoding.longspec import _LongSpecDrafting

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16]]


def drafting(name: str = "transformer_nano", window: int = 4, **options: Any) -> Any:
    torch.manual_seed(0)
    return add_draft_layer(zoo.create_model(name, **options), window=window).eval()


def test_every_guess_is_that_of_the_layer_on_the_whole_text(monkeypatch):
    """Each node sees the window of its branch, and the model's cache up to the token before the draft; in rows with
    padding, beyond the window, and after drafts that were accepted in part."""
    model, seen = drafting(dtype=torch.float64), []

    def read_on(self: Any, tokens: Any, state: Any, plain: Any = _LongSpecDrafting.read_on) -> Any:
        logits, tree = plain(self, tokens, state), getattr(state, "tree", None)
        if tree is None:
            self.newest, self.nodes = tokens, tokens[:, :0]
        else:
            self.nodes = torch.cat([self.nodes, tokens], 1)
        seen.append((self.own.seen, self.newest, self.nodes, tree and tree.seen.clone(), logits))
        return logits

    monkeypatch.setattr(_LongSpecDrafting, "read_on", read_on)
    prompts, draft = [[9, 10, 11, 12, 13, 14, 15], [5, 6, 7]], LongSpec(widths=(2, 3, 2))
    texts = zoo.generate(model, prompts, 14, draft=draft, generator=torch.Generator().manual_seed(0))
    assert len(seen) > 8 and draft.counts.accepted > 0
    for steps, newest, nodes, branches, logits in seen:
        for row, text in enumerate(texts):
            before = text[: steps - (7 - len(prompts[row]))]  # and the newest token is the last of it
            assert before[-1] == newest[row]
            for place, found in enumerate(logits[row].flip(0)):
                branch = nodes[row, :0] if branches is None else nodes[row, branches[row, -1 - place]]
                expected = draft_logits(model, torch.cat([before, branch])[None], 1 + len(branch))[0, -1]
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["transformer_nano", "falcon_h1_nano"])
def test_the_text_is_that_of_the_model_alone(name):
    """With a recurrence beside the attention too."""
    model = drafting(name)
    plain = zoo.generate(model, PROMPTS, 12, temperature=0)
    for draft in (LongSpec(), LongSpec(widths=(), length=3)):
        found = zoo.generate(model, PROMPTS, 12, temperature=0, draft=draft, num_samples=2)
        assert all(torch.equal(row, plain[index // 2]) for index, row in enumerate(found))


def test_the_layer_remembers_its_window_alone(monkeypatch):
    held, model = set(), drafting(window=8)

    def keep(self: Any, *given: Any, plain: Any = _LongSpecDrafting.keep) -> None:
        plain(self, *given)
        held.add(self.own.nbytes)

    monkeypatch.setattr(_LongSpecDrafting, "keep", keep)
    for length in (4, 200):
        zoo.generate(model, torch.randint(256, (1, length)), 20, draft="longspec")
    assert held == {2 * 8 * 2 * 32 * 4}  # keys and values, tokens, heads, channels, bytes


def test_the_layer_is_kept_and_leaves_the_model_as_it_is(tmp_path):
    model, plain, tokens = drafting(), zoo.create_model("transformer_nano").eval(), torch.randint(256, (2, 9))
    plain.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(model(tokens), plain(tokens))
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    assert torch.equal(draft_logits(again, tokens, 2), draft_logits(model, tokens, 2))


def test_the_layer_alone_learns_also_far_away():
    """A text shown at positions up to 4000 on, of which the first two stay where they are."""
    model, tokens = drafting(window=8), torch.arange(24).repeat(2, 3)
    model.requires_grad_(False)
    model.draft_layer.requires_grad_()
    before = model.embedding.weight.clone()
    optimizer = torch.optim.Adam(model.draft_layer.parameters(), 1e-2)
    losses = []
    for step in range(30):
        loss = draft_loss(model, tokens, tokens, 1 + step % 4, anchors=2, offset=(0, 4000)[step % 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4]) and torch.equal(model.embedding.weight, before)
    torch.testing.assert_close(  # of positions only differences count
        draft_loss(model, tokens, tokens, 2, anchors=0, offset=300), draft_loss(model, tokens, tokens, 2)
    )
    with pytest.raises(ValueError, match=r"model of attention alone, .* max_offset=0"):
        draft_loss(drafting("falcon_h1_nano"), tokens, tokens, 1, offset=9)


def test_what_has_no_draft_layer():
    for model, message in (
        (zoo.create_model("mamba2_nano"), "ends with no such attention"),
        (zoo.create_model("transformer_nano", window=8), "ends with SlidingWindowAttention"),
        (zoo.create_model("vit_nano"), "for a language model, got"),
    ):
        with pytest.raises(ValueError, match=message):
            add_draft_layer(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no draft layer: zoo\.decoding\.add_draft_layer"):
        zoo.generate(zoo.create_model("transformer_nano"), PROMPTS, 3, draft="longspec")
    model = drafting()
    with pytest.raises(ValueError, match="leave out cache="):
        zoo.generate(model, PROMPTS, 3, draft="longspec", cache="h2o")
    with pytest.raises(ValueError, match="has a draft layer already"):
        add_draft_layer(model)
    with pytest.raises(
        ValueError, match="no draft layer of 'moe_nano' comes with the package; one of transformer_nano"
    ):
        add_draft_layer(zoo.create_model("moe_nano"), pretrained=True)


def test_the_layer_that_comes_with_the_package_drafts_well():
    folder = bundled.FOLDER / "draft_layers"
    for name, entry in json.loads((folder / "index.json").read_text()).items():
        content = (folder / entry["file"]).read_bytes()
        assert len(content) == entry["bytes"] < 300_000 and hashlib.sha256(content).hexdigest() == entry["sha256"]
        model = add_draft_layer(zoo.create_model(name, pretrained=True), pretrained=True)
        prompts = [list(text) for text in (b"The import statement", b"class", b"If the function returns ")]
        plain, paces = zoo.generate(model, prompts, 40, temperature=0), []
        for draft in (LongSpec(widths=(), length=4), LongSpec()):
            found = zoo.generate(model, prompts, 40, temperature=0, draft=draft)
            assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))
            paces.append(draft.counts.tokens / draft.counts.passes)
        assert 1.2 < paces[0] < paces[1]

"""In-context vectors: their formulas written out, strength 0 and equal vectors, and a text that turns to capitals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.steering import in_context_vectors, steer

TEXTS = ("the statement", "an object", "every class", "this module", "names are bound")


def pairs(model: Any) -> list[tuple[list[int], list[int]]]:
    return [(list(text.encode()), list(text.upper().encode())) for text in TEXTS]


@pytest.fixture(scope="module")
def model() -> Any:
    return zoo.create_model("transformer_nano", pretrained=True).eval()


def hidden(model: Any, text: list[int]) -> torch.Tensor:
    """Outputs of the blocks after the last token, by running them."""
    x, found = model.embedding(torch.tensor([text])), []
    for block in model.blocks:
        x = block(x)
        found.append(x[0, -1])
    return torch.stack(found)


def test_vectors_are_mean_and_first_component(model):
    from sklearn.decomposition import PCA

    apart = [hidden(model, y) - hidden(model, x) for x, y in pairs(model)]
    differences = torch.stack(apart).flatten(1).detach().numpy()
    fitted: Any = PCA(1).fit(differences)
    mean, first = differences.mean(0), fitted.components_[0]
    expected = torch.from_numpy(mean + first * (1 if first @ mean > 0 else -1)).view(len(model.blocks), -1)
    torch.testing.assert_close(in_context_vectors(model, pairs(model)), expected.float(), atol=1e-4, rtol=1e-4)
    (x, y), *_ = pairs(model)
    torch.testing.assert_close(in_context_vectors(model, [(x, y)]), hidden(model, y) - hidden(model, x))


@torch.no_grad()
def test_steps_follow_the_formula(model):
    vector, tokens = in_context_vectors(model, pairs(model)), torch.arange(20)[None]
    x = model.embedding(tokens)
    for block, v in zip(model.blocks, vector, strict=True):
        x = x + block.mixer(block.norm(x))
        h = block.mlp(block.mlp_norm(x))
        u = 0.3 * (1 + torch.cosine_similarity(h, -v, dim=-1).clamp(min=0))[..., None] * v / v.norm()
        turned = h / h.norm(dim=-1, keepdim=True) + u
        x = x + turned / turned.norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True)
    plain, hooks = model(tokens), [len(m._forward_hooks) for m in model.modules()]
    with steer(model, vector, 0.3) as steered:
        torch.testing.assert_close(steered(tokens), model.head(model.norm(x)), atol=1e-4, rtol=1e-4)
    with steer(model, [vector, vector], 0.3):  # two equal ones are one
        torch.testing.assert_close(model(tokens), model.head(model.norm(x)), atol=1e-4, rtol=1e-4)
    with steer(model, vector, 0.0):
        assert torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), plain) and hooks == [len(m._forward_hooks) for m in model.modules()]


def test_text_becomes_capital(model):
    """The prompt is no longer for it."""
    prompt = torch.tensor([list(b"the value of the ")])
    vector = in_context_vectors(model, pairs(model))

    def capitals(strength: float) -> int:
        with steer(model, vector, strength):
            text = zoo.generate(model, prompt, 60, temperature=0)[0, prompt.shape[1] :]
        return sum(chr(token).isupper() for token in text.tolist())

    assert capitals(0.0) == 0 < capitals(1.0)


@pytest.mark.parametrize("name", ["mamba2_nano", "falcon_h1_nano", "moe_nano"])
def test_other_models_have_a_place_for_them(name):
    model: Any = zoo.create_model(name).eval()
    tokens = torch.arange(12)[None]
    vector = in_context_vectors(model, pairs(model))
    plain = model(tokens)
    with steer(model, vector, 0.2):
        assert not torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), plain)


def test_bad_input(model):
    with pytest.raises(ValueError, match="at least one token each, got 0 pairs"):
        in_context_vectors(model, [])
    vector = torch.ones(len(model.blocks), model.config.dim)
    for vectors, strength in ((vector[1:], 0.1), ([vector, vector], [0.1]), ([], 0.1)):
        with (
            pytest.raises(ValueError, match=r"steer takes vectors \(3, 128\) and a strength for each"),
            steer(model, vectors, strength),
        ):
            pass
    with pytest.raises(ValueError, match="whose blocks are run once, got Linear"), steer(nn.Linear(2, 2), vector):
        pass

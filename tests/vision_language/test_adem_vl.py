"""ADEM-VL: what a token sees of an image, written out; its parameters; and that a state remembers the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.vision_language import IMAGE, VideoScan, answer


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made: Any = zoo.create_model("adem_vl_nano", dtype=torch.float64).eval()
    for parameter in made.parameters():  # tables and adapters that start at zero among them
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


TOKENS = torch.tensor([[0, 255, 65, 66, 67], [0, 80, 255, 82, 83]])


def test_what_is_trained_is_counted_as_published():
    for name, count in (("adem_vl_7b", 4_530_432), ("adem_vl_13b", 5_449_984)):
        large: Any = zoo.create_model(name, device="meta")
        assert sum(p.numel() for p in large.tuned().values()) == count


@torch.no_grad()
def test_the_fusion_written_out(model, images):
    """Token by token, feature by feature; pooled by loops."""
    seen = model.vision.forward_features(images)
    square = seen[:, 1:].unflatten(1, (6, 6))
    coarse = [square[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for i in range(3) for j in range(3)]
    features = torch.cat([seen[:, 1:], torch.stack(coarse, 1)], 1)  # 36 and 9
    project = model.feature_projector
    v = project.fc2(F.silu(project.fc1(features)))
    x = model.language.enter(TOKENS)
    first = model.projector(seen[:, 0])
    x[0, 1], x[1, 2] = first[0], first[1]
    keys, values = v + model.fusion.key_table, v + model.fusion.value_table
    for block in model.language.blocks:
        x = x + block.mixer(block.norm(x))
        h = block.mlp_norm(x)
        beside = torch.zeros_like(h)
        for row in range(2):
            for t in range(5):
                scores = torch.stack([F.silu(h[row, t]) @ F.silu(key) for key in keys[row]])
                for j in scores.argsort()[4:]:  # but the lowest int(0.1 * 45)
                    beside[row, t] += scores[j] * values[row, j]
        x = x + block.mlp.mlp(h) + 0.1 * beside
    torch.testing.assert_close(model(images, TOKENS), model.language.read_out(x))


@torch.no_grad()
def test_a_state_remembers_the_image(model, images):
    whole, state = model(images, TOKENS), model.init_state(2)
    parts = [model(images, TOKENS[:, :3], state), model(None, TOKENS[:, 3:4], state), model(None, TOKENS[:, 4:], state)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert not torch.allclose(model(images.flip(0), TOKENS), whole)
    again = model.init_state(2)
    model(images, TOKENS[:, :3], again)
    again.reorder(torch.tensor([1, 0]))
    torch.testing.assert_close(model(None, TOKENS[:, 3:4].flip(0), again), parts[1].flip(0))
    later = model.init_state(2)
    model(images[:1], torch.cat([TOKENS[:1, :2], torch.tensor([[0, 80]])]), later)  # one image, and then the other
    model(images[1:], torch.cat([TOKENS[:1, 2:3], TOKENS[1:, 2:3]]), later)
    torch.testing.assert_close(model(None, TOKENS[:, 3:4], later)[0], parts[1][0])
    assert again.to(dtype=torch.float32).image.dtype == torch.float32
    again.reset()
    assert again.image is None
    mixed = torch.cat([TOKENS[1:], TOKENS[:1]]), images.flip(0)
    torch.testing.assert_close(model(mixed[1], mixed[0]), whole.flip(0))
    without = model(images[:1], torch.cat([TOKENS[:1], torch.tensor([[0, 1, 2, 3, 4]])]))
    torch.testing.assert_close(without, torch.cat([whole[:1], model(None, torch.tensor([[0, 1, 2, 3, 4]]))]))


@torch.no_grad()
def test_text_follows_the_image_that_was_seen(model, images):
    tokenizer = zoo.load_tokenizer("adem_vl_nano")
    prompts = [f"{IMAGE}caption: ", f"{IMAGE}what? "]
    found = answer(model, images, prompts, tokenizer, 6)
    for row in range(2):
        ids = [0, 255, *prompts[row].removeprefix(IMAGE).encode()]
        for _ in range(6):
            ids.append(int(model(images[row : row + 1], torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] == 0:
                break
        assert found[row] == tokenizer.decode(ids[-6:])
    assert model.fusion.seen is None


@torch.no_grad()
def test_at_first_nothing_is_added(images):
    """Without what is projected of an image the language model says what it says alone."""
    fresh: Any = zoo.create_model("adem_vl_nano", image_scale=0.0, dtype=torch.float64).eval()
    plain: Any = zoo.create_model("transformer_nano", dim=96, mlp_dim=224, dtype=torch.float64).eval()
    plain.load_state_dict({k.replace("mlp.mlp", "mlp"): t for k, t in fresh.language.state_dict().items()})
    text = torch.tensor([[0, 65, 66, 67]])
    assert torch.equal(fresh(None, text), plain(text))


def test_what_cannot_be_seen(model, images):
    with pytest.raises(ValueError, match=r"at most one image, got \[2\]"):
        model(images, torch.tensor([[0, 255, 255, 65]]))
    with pytest.raises(ValueError, match="dropped_share must be in"):
        zoo.create_model("adem_vl_nano", dropped_share=1.0)
    for options in ({"num_blocks": 2}, {"class_feature": True}, {"projector_bias": False}):
        with pytest.raises(ValueError, match="reads the whole encoder"):
            zoo.create_model("adem_vl_nano", **options)
    with pytest.raises(ValueError, match="which AdemVL does not"):
        VideoScan(model)
    with pytest.raises(ValueError, match="adds to feed-forward layers"):
        zoo.create_model("adem_vl_nano", language="mamba2_nano", language_options={})

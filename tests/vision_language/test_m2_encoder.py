"""M2-Encoder: its two ways written out, padding, pairs that are learnt, and what it cannot read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.train.contrastive import contrastive_loss
from zoo.train.data import CaptionedPicturesDataModule
from zoo.train.tasks.contrastive import nearest


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made: Any = zoo.create_model("m2_encoder_nano", dtype=torch.float64).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return made


def block(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Head by head, of one text or image (T, dim)."""

    def norm(layer: Any, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    q, k, v = layer.qkv(norm(layer.norm1, x)).chunk(3, dim=-1)
    parts = [slice(16 * head, 16 * head + 16) for head in range(4)]
    heads = [(q[:, p] @ k[:, p].T / 4).softmax(-1) @ v[:, p] for p in parts]
    x = x + layer.out(norm(layer.inner_norm, torch.cat(heads, 1)))
    return x + layer.fc2(norm(layer.hidden_norm, F.gelu(layer.fc1(norm(layer.norm2, x)))))


@torch.no_grad()
def test_both_ways_written_out(model):
    image = torch.rand(1, 1, 24, 24, dtype=torch.float64)
    text = torch.tensor([[0, 55, 32, 97, 116]])
    patches = F.conv2d(image, model.patch_embed.proj.weight, model.patch_embed.proj.bias, 4)[0].flatten(1).T
    ways = {
        "image": torch.cat([model.class_token[0], patches]) + model.image_positions[0],
        "text": model.embedding.weight[text[0]] + model.text_positions[0, :5],
    }
    for kind, given in (("image", image), ("text", text)):
        x = ways[kind]
        for layer in getattr(model, f"{kind}_blocks"):
            x = block(layer, x)
        x = block(model.joint_blocks[0], getattr(model, f"{kind}_norm")(x))
        torch.testing.assert_close(model(given)[0], getattr(model, f"{kind}_head")(model.joint_norm(x)[0]))


@torch.no_grad()
def test_padding_changes_nothing(model):
    text = torch.tensor([[0, 55, 32, 97, 116], [0, 55, 32, 255, 255]])
    found = model(text)
    torch.testing.assert_close(found[1:], model(text[1:, :3]))
    masked = model(text.where(text != 255, 9), mask=text != 255)
    torch.testing.assert_close(masked, found)


def test_pairs_are_learnt():
    """From chance, one in 16, to most; every parameter of both ways learns."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("m2_encoder_nano", depth=1)
    model.set_grad_checkpointing()
    data = CaptionedPicturesDataModule(train_samples=16, batch_size=16)
    data.setup()
    images, texts = data.sources["train"].fetch(torch.arange(16), 0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20)
        first, second = (F.normalize(model(x), dim=1) for x in (images, texts))
        loss = contrastive_loss(first, second, torch.tensor(14.0))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    with torch.no_grad():
        model.eval()
        found = nearest(F.normalize(model(images), dim=1), F.normalize(model(texts), dim=1)).mean()
        assert found > 0.9
        assert model.similarity(images[:3], texts[:2]).shape == (3, 2)


def test_saved_and_rebuilt(model, tmp_path):
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    images = torch.rand(2, 1, 24, 24, dtype=torch.float64)
    assert again.config == model.config and torch.equal(again(images), model(images))


def test_what_cannot_be_encoded(model):
    for given, error in (
        (torch.rand(2, 3, 24, 24), r"\(batch, 1, 24, 24\), got \(2, 3, 24, 24\)"),
        (torch.zeros(2, 65, dtype=torch.int64), "1 to 64 tokens"),
        (torch.tensor([[0, 256]]), r"texts must be in \[0, 256\)"),
        (torch.tensor([[255, 255]]), "begins with padding"),
    ):
        with pytest.raises(ValueError, match=error):
            model(given)

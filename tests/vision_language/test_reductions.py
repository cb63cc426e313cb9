"""Fewer tokens of an image: keeping all is the plain model bit for bit, and each method is its definition."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.cache import LookM
from zoo.layers.cache.pruning import governed_parts
from zoo.vision_language import IMAGE, VTCCLS, EfficientVLA, LongVLM, encode_prompt

TOKEN, FEATURES = 255, 37


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    made: Any = zoo.create_model("llava_nano", dtype=torch.float64).eval()
    for parameter in made.parameters():  # so that attention is not even
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture(scope="module")
def frames(model) -> Any:
    """The same, with patches alone as features."""
    config = dataclasses.replace(model.config, class_feature=False)
    made: Any = type(model)(config).double().eval()
    made.load_state_dict(model.state_dict())
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def prompt(count: int, *text: int) -> Tensor:
    return torch.tensor([[0, *[TOKEN] * count, *text]])


@torch.no_grad()
def test_keeping_all_is_the_plain_model_bit_for_bit(model, frames, images):
    tokens = prompt(FEATURES, 65, 66, 67).expand(2, -1)
    expected = model(images, tokens)
    assert torch.equal(model(images, tokens, reduction=VTCCLS(FEATURES)), expected)
    for policy in (EfficientVLA((TOKEN,), FEATURES), LookM((TOKEN,), 100, 4)):
        states = model.init_state(2, cache=policy), model.init_state(2)
        for part in (slice(0, 40), slice(40, 41)):
            given = images if part.start == 0 else None
            found, plain = (model(given, tokens[:, part], state) for state in states)
            assert torch.equal(found, plain)
    clip = LongVLM(images=2, segments=1, merges=(), classes=0, heads=4)
    whole = prompt(72, 65, 66)
    assert torch.equal(frames(images, whole, reduction=clip), frames(images, whole))


@torch.no_grad()
def test_vtc_cls_keeps_what_the_class_token_looks_at(model, images):
    stream, scores = model.vision.forward_embed(images), torch.zeros(2, 36, dtype=torch.float64)
    for index, block in enumerate(model.vision.blocks):
        x = block.norm1(stream)
        q, k, _ = block.attn.qkv(x).chunk(3, dim=-1)
        for head in range(4):
            part = slice(16 * head, 16 * head + 16)
            weights = (q[..., part] @ k[..., part].mT / 4).softmax(-1)
            if index == 1:  # from block 1 to the last but one
                scores += weights[:, 0, 1:] / 4
        stream = block(stream)
    features = model.encode(images).features
    kept = model.see(images, VTCCLS(9, start=1))
    for row in range(2):
        places = [0, *(1 + scores[row].topk(8).indices.sort().values).tolist()]
        torch.testing.assert_close(kept[row], model.projector(features[row, places]))
    fewer, more = (model.see(images, VTCCLS(n)) for n in (5, 12))
    assert all(any(torch.equal(one, other) for other in more[0]) for one in fewer[0])


@torch.no_grad()
def test_longvlm_merges_within_segments(frames, images):
    """Pairs by loops over all tokens, as Token Merging defines them."""
    clip = torch.cat([images, images + 0.01, 1 - images])  # six frames
    reduction = LongVLM(images=6, segments=3, merges=(30, 9), classes=2, heads=4)
    assert frames.tokens_of_image(reduction) == 2 + 3 * (72 - 30 - 9)
    found, seen = reduction.reduce(frames.encode(clip, keep=True)), frames.encode(clip, keep=True)
    classes = [frames.vision.norm(x)[:, 0].mean(0) for x in seen.stream[-2:]]
    torch.testing.assert_close(found[0, :2], torch.stack(classes))
    for segment in range(3):
        x = seen.features[2 * segment : 2 * segment + 2].flatten(0, 1)
        tokens = [(index, vector, 1) for index, vector in enumerate(x)]
        for pairs in (30, 9):
            keys = F.normalize(torch.stack([v for _, v, _ in tokens]).unflatten(-1, (4, -1)).mean(1), dim=-1)
            best = [
                max((float(keys[i] @ keys[j]), j) for j in range(1, len(tokens), 2)) for i in range(0, len(tokens), 2)
            ]
            order = sorted(range(len(best)), key=lambda i: -best[i][0])[:pairs]
            sums = [vector * size for _, vector, size in tokens]
            sizes = [size for _, _, size in tokens]
            for i in order:
                sums[best[i][1]] = sums[best[i][1]] + sums[2 * i]
                sizes[best[i][1]] += sizes[2 * i]
            gone = {2 * i for i in order}
            tokens = [(t[0], sums[i] / sizes[i], sizes[i]) for i, t in enumerate(tokens) if i not in gone]
        assert sum(size for _, _, size in tokens) == 72
        torch.testing.assert_close(
            found[0, 2 + 33 * segment : 35 + 33 * segment], torch.stack([v for _, v, _ in tokens])
        )


@torch.no_grad()
def test_efficient_vla_keeps_the_relevant_and_the_unlike(model, images):
    tokens = prompt(FEATURES, 65, 66, 67)
    state = model.init_state(1, cache=EfficientVLA((TOKEN,), 9, key=3, share=0.5, layer=0))
    model(images[:1], tokens, state)
    language = model.language
    x = model.language.enter(tokens).masked_scatter((tokens == TOKEN)[..., None], model.see(images[:1]))
    plain = language.init_state(1, cache=LookM())
    y = language.blocks[0](x, plain[0])
    (part,) = governed_parts(plain[:1])
    attention = language.blocks[0].mixer
    q, _ = (p(language.blocks[0].norm(x)).unflatten(-1, (-1, 24)) for p in (attention.q_proj, attention.k_proj))
    (q,) = attention.rotated(torch.arange(41), q)
    relevance = torch.zeros(41, dtype=torch.float64)
    for head in range(4):
        for t in (0, 38, 39, 40):
            weights = (part.key[0, head // 2, : t + 1] @ q[0, t, head] / 24**0.5).softmax(0)
            relevance[: t + 1] += weights / 16
    image = list(range(1, 38))
    chosen = sorted(image, key=lambda j: -relevance[j])[:6]  # three, and half of the other six
    unit = F.normalize(y[0], dim=-1)
    while len(chosen) < 9:
        left = [j for j in image if j not in chosen]
        chosen.append(min(left, key=lambda j: max(float(unit[j] @ unit[c]) for c in chosen)))
    held = [part.position[0, 0].tolist() for part in governed_parts(state)]
    assert held[0] == list(range(41))
    assert held[1] == held[2] == sorted([0, *chosen, 38, 39, 40])


@torch.no_grad()
def test_a_policy_of_images_knows_the_model_s(model, images):
    """Without being told which tokens they are: it forgets some of them, and no text."""
    tokens = prompt(FEATURES, 65, 66)
    for cache in (LookM(heavy=2, recent=2), {0: LookM(heavy=2, recent=2)}, "look_m"):
        state = model.init_state(1, cache=cache)
        model(images[:1], tokens, state)
        assert next(governed_parts(state)).filled < tokens.shape[1]


def test_prompts_of_clips(frames):
    tokenizer = zoo.load_tokenizer("llava_nano")
    reduction = LongVLM(images=4, segments=2, merges=(16,), classes=1, heads=4)
    ids = encode_prompt(frames, tokenizer, f"{IMAGE * 4}caption: ", 4, reduction)
    assert ids.count(TOKEN) == 1 + 2 * (72 - 16) and ids[1] == TOKEN
    with pytest.raises(ValueError, match="takes 4 images together, and the text names 3"):
        encode_prompt(frames, tokenizer, f"{IMAGE * 3}caption: ", reduction=reduction)


def test_what_cannot_be_left_out(model, frames, images):
    with pytest.raises(ValueError, match="takes 4 images together, got 2"):
        frames.see(images, LongVLM(images=4, segments=2, merges=()))
    with pytest.raises(ValueError, match="segments must divide the 4 frames"):
        LongVLM(images=4, segments=3)
    with pytest.raises(ValueError, match="classes must be at most the 3 blocks"):
        frames.see(images, LongVLM(images=2, segments=1, merges=()))
    with pytest.raises(ValueError, match="give the model class_feature=False"):
        model.see(images, LongVLM(images=2, segments=1, merges=()))
    with pytest.raises(ValueError, match="share of the tokens that relevance chooses"):
        EfficientVLA(share=1.5)
    with pytest.raises(ValueError, match="blocks must be some of the 3"):
        model.see(images, VTCCLS(9, start=3))
    vim: Any = zoo.create_model(
        "llava_nano", vision="vim_nano", vision_options={"img_size": 24, "patch_size": 4, "depth": 1},
        dtype=torch.float64,
    )  # fmt: skip
    with pytest.raises(ValueError, match="Vim has none: take a ViT"):
        vim.see(images, VTCCLS(9))

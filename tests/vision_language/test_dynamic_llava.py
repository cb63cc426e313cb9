"""Dynamic-LLaVA: a share of 1 is the plain model, its three forms are one, and training reaches its shares."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers.cache.call import Call
from zoo.layers.cache.dynamic_llava import masked_attention
from zoo.layers.cache.pruning import governed_parts
from zoo.layers.tokens import ImagePredictor, TextPredictor
from zoo.vision_language import IMAGE, DynamicLLaVA, add_predictors, annealed, answer, sparsified_loss

TOKEN, FEATURES, OUTPUT = 255, 37, 9
SMALL = {"width": 16, "num_heads": 2, "mlp_dim": 24, "depth": 1}


def plain(**options: Any) -> Any:
    torch.manual_seed(0)
    drawn = {"dim": 96, "mlp_dim": 256}  # weights that keep some of the output, not all
    model: Any = zoo.create_model("llava_nano", language_options=drawn, **options).eval()
    for parameter in model.parameters():  # so that attention is not even
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    """Whose predictors keep some of everything."""
    made = add_predictors(plain(dtype=torch.float64), layer=1, image_keep=0.3, **SMALL)
    for parameter in made.language.context_predictors.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.6)
    return made


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def text(rows: int = 1, output: int = OUTPUT) -> tuple[Tensor, int]:
    """A prompt with an image and what was written after it, and the length of the prompt."""
    ids = torch.randint(32, 127, (rows, 3 + output), generator=torch.Generator().manual_seed(1))
    begin = torch.tensor([[0, *[TOKEN] * FEATURES]]).expand(rows, -1)
    return torch.cat([begin, ids], 1), 1 + FEATURES + 3


def filled(state: Any) -> list[int]:
    return [part.filled for part in governed_parts(state)]


def stepped(model: Any, images: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits from the last token of the prompt on, the output token by token, and the state."""
    tokens, prompt = text(len(images))
    state = model.init_state(len(images), cache=cache)
    found = [model(images, tokens[:, :prompt], state, logits_to_keep=1)]
    found += [model(None, tokens[:, t : t + 1], state) for t in range(prompt, tokens.shape[1])]
    return torch.cat(found, 1), state


def masked(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the masked form, and what it keeps."""
    tokens, prompt = text(len(images))
    state = model.init_state(len(images), cache=DynamicLLaVA(masked=True))
    chooser = next(governed_parts(state))
    chooser.notes["output"] = (torch.arange(tokens.shape[1]) >= prompt).expand_as(tokens)
    return model(images, tokens, state), chooser.notes["keep"]


@torch.no_grad()
def test_shares_of_one_are_the_plain_model_bit_for_bit(model, images):
    keeping = DynamicLLaVA(image_keep=1, text_keep=1)
    bare, (tokens, _) = plain(dtype=torch.float64), text(2)
    expected = bare(images, tokens)
    assert torch.equal(model(images, tokens), expected)
    found, state = stepped(model, images, keeping)
    assert torch.equal(found, stepped(bare, images, None)[0]) and len({*filled(state)}) == 1
    assert torch.equal(bare(images, tokens, bare.init_state(2, cache=keeping)), expected)
    all_kept = add_predictors(plain(dtype=torch.float64), layer=1, image_keep=1.0, text_keep=1.0, **SMALL)
    labels = tokens.masked_fill(tokens == TOKEN, -100)
    loss = sparsified_loss(all_kept, images, tokens, labels, shortest=1)
    assert torch.equal(loss, bare(images, tokens, labels=labels))


@torch.no_grad()
def test_dropped_tokens_and_masked_ones_give_the_same(model, images):
    """With a cache, without one and under the mask of training; a token that is dropped is seen by no later one."""
    tokens, prompt = text()
    found, state = stepped(model, images[:1], DynamicLLaVA(unjudged=0))
    expected, keep = masked(model, images[:1])
    kept = int(keep[0, :prompt].sum()), int(keep[0, prompt:].sum())
    assert kept[0] == prompt - FEATURES + int(0.3 * FEATURES) and 0 < kept[1] < OUTPUT
    torch.testing.assert_close(found, expected[:, prompt - 1 :], atol=1e-11, rtol=0)
    assert filled(state) == [prompt + OUTPUT, sum(kept), sum(kept)]
    first = filled(stepped(model, images[:1], DynamicLLaVA())[1])  # the first token after the prompt is not judged
    assert first[1:] == [sum(kept) + 1 - int(keep[0, prompt])] * 2
    for count in range(1, OUTPUT + 1):
        state = model.init_state(1, cache=DynamicLLaVA(generated=count))
        alone = model(images[:1], tokens[:, : prompt + count], state, logits_to_keep=1)
        torch.testing.assert_close(alone[:, 0], found[:, count], atol=1e-11, rtol=0)
        before = int(keep[0, prompt : prompt + count - 1].sum())  # the newest token is there in any case
        assert filled(state)[1:] == [kept[0] + before + 1] * 2
    assert (model(images[:1], tokens) - expected)[:, prompt:].abs().max() > 0.01


@torch.no_grad()
def test_masked_attention_against_loops(model, images):
    """The second block, token by token over what is kept and itself."""
    tokens, _ = text()
    _, keep = masked(model, images[:1])
    state = model.init_state(1, cache=DynamicLLaVA(masked=True))
    next(governed_parts(state)).notes["output"] = torch.arange(tokens.shape[1])[None] >= tokens.shape[1] - OUTPUT
    language, outputs = model.language, []
    handle = language.blocks[1].mixer.out_proj.register_forward_pre_hook(lambda module, given: outputs.append(given[0]))
    model(images[:1], tokens, state)
    handle.remove()
    x = language.enter(tokens).masked_scatter((tokens == TOKEN)[..., None], model.see(images[:1]))
    attention, h = language.blocks[1].mixer, language.blocks[1].norm(language.blocks[0](x))
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (projection(h).unflatten(-1, (-1, 24)) for projection in projections)
    q, k = attention.rotated(torch.arange(tokens.shape[1]), q, k)
    for t in range(tokens.shape[1]):
        seen = [s for s in range(t + 1) if keep[0, s] or s == t]
        for head in range(4):
            weights = (k[0, seen, head // 2] @ q[0, t, head] / 24**0.5).softmax(0)
            torch.testing.assert_close(outputs[0][0, t, 24 * head : 24 * head + 24], weights @ v[0, seen, head // 2])


@torch.no_grad()
def test_the_best_tokens_of_an_image_stay_at_their_positions(model, images):
    tokens, prompt = text()
    state = model.init_state(1, cache=DynamicLLaVA())
    model(images[:1], tokens[:, :prompt], state)
    x = model.language.enter(tokens[:, :prompt])
    x = x.masked_scatter((tokens[:, :prompt] == TOKEN)[..., None], model.see(images[:1]))
    said = model.language.context_predictors.image(model.language.blocks[0](x)[:, 1 : 1 + FEATURES])
    best = (1 + said[0, :, 0].topk(int(0.3 * FEATURES)).indices).tolist()
    later = list(governed_parts(state))[1]
    assert sorted(later.position[0, 0].tolist()) == sorted([0, *best, *range(1 + FEATURES, prompt)])


@torch.no_grad()
def test_rows_go_on_with_as_many_tokens_as_the_one_with_the_most(model):
    """Those that have less text keep more of their images, the next best."""
    images = torch.rand(3, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows = [0, *[TOKEN] * 2 * FEATURES, 65, 66], [0, *[TOKEN] * FEATURES, *range(65, 65 + FEATURES), 66, 67]
    together, alone = (model.init_state(count, cache=DynamicLLaVA()) for count in (2, 1))
    logits = model(images, torch.tensor(rows), together)
    expected = model(images[2:], torch.tensor(rows[1:]), alone)
    torch.testing.assert_close(logits[1:, -1], expected[:, -1], atol=1e-11, rtol=0)
    assert filled(together) == [len(rows[0]), *filled(alone)[1:]]
    short = model.init_state(1, cache=DynamicLLaVA())
    model(images[:2], torch.tensor(rows[:1]), short)
    chosen, kept = (set(list(governed_parts(state))[1].position[0, 0].tolist()) for state in (short, together))
    assert chosen < kept and len(chosen) == 3 + int(0.3 * 2 * FEATURES)


@torch.no_grad()
def test_a_draft_is_as_if_it_had_come_alone(model, images):
    tokens, prompt = text(2)
    found, alone = stepped(model, images, DynamicLLaVA(unjudged=0))
    state = model.init_state(2, cache=DynamicLLaVA(unjudged=0))
    model(images, tokens[:, :prompt], state)
    state.commit()
    for start, stop in ((0, 5), (3, OUTPUT)):  # of the first five three are accepted
        logits = model(None, tokens[:, prompt + start : prompt + stop], state)
        torch.testing.assert_close(logits, found[:, 1 + start : 1 + stop], atol=1e-11, rtol=0)
        state.commit(3 if start == 0 else OUTPUT - 3)
    assert filled(state) == filled(alone)
    copied = governed_parts(copy.deepcopy(state))
    assert all(part.policy.predictors is model.language.context_predictors for part in copied)


@torch.no_grad()
def test_rows_are_independent_and_padding_changes_nothing(model, images):
    tokenizer = zoo.load_tokenizer("llava_nano")
    prompts = [f"{IMAGE}what is at b2? ", f"{IMAGE}caption: "]
    together = answer(model, images, prompts, tokenizer, 12, cache=DynamicLLaVA())
    alone = [answer(model, images[i : i + 1], prompts[i], tokenizer, 12, cache=DynamicLLaVA())[0] for i in range(2)]
    assert together == alone


def shares(model: Any, images: Tensor, tokens: Tensor, labels: Tensor, draws: int = 16) -> tuple[float, float]:
    """Of the tokens of images and of the output that are kept, as they are drawn."""
    kept = []
    for _ in range(draws):
        state = model.init_state(len(tokens), cache=DynamicLLaVA(masked=True, temperature=0.1))
        chooser = next(governed_parts(state))
        chooser.notes["output"] = labels != -100
        with torch.no_grad():
            model(images, tokens, state)
        kept.append(chooser.notes["keep"])
    mean = torch.stack(kept).mean(0)
    assert bool((mean[(tokens != TOKEN) & (labels == -100)] == 1).all())
    return mean[tokens == TOKEN].mean().item(), mean[labels != -100].mean().item()


def test_training_reaches_its_shares():
    """Of the predictors alone, whose choices follow the loss through the masked attention."""
    torch.manual_seed(0)
    model = add_predictors(zoo.create_model("llava_nano").eval(), layer=1, image_keep=0.25, text_keep=0.8, **SMALL)
    predictors, steps = model.language.context_predictors, 100
    images, (tokens, prompt) = torch.rand(4, 1, 24, 24), text(4, output=40)
    labels = tokens.masked_fill(torch.arange(tokens.shape[1]) < prompt, -100)
    before = shares(model, images, tokens, labels)
    assert before[0] > 0.45 and before[1] < 0.65
    optimizer = torch.optim.Adam(predictors.parameters(), 2e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss = sparsified_loss(model, images, tokens, labels, temperature=annealed(step / steps), shortest=1)
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in predictors.parameters())
    after = shares(model, images, tokens, labels)
    assert after[0] == pytest.approx(0.25, abs=0.05) and after[1] == pytest.approx(0.8, abs=0.05)
    assert annealed(0) == 1 and annealed(1) == pytest.approx(0.1)


def test_the_gradient_of_a_choice_is_that_of_the_weights(model, images):
    """Numerically: with tokens a little more or less there."""
    tokens, _ = text()
    state, read = model.init_state(1, cache=DynamicLLaVA(image_keep=1, text_keep=1)), []
    attention = model.language.blocks[1].mixer
    handle = attention.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    with torch.no_grad():
        model(images[:1], tokens, state)
        (q,) = attention.rotated(torch.arange(tokens.shape[1]), attention.q_proj(read[0]).unflatten(-1, (-1, 24)))
    handle.remove()
    call = Call(q.transpose(1, 2), torch.arange(tokens.shape[1]), attention)
    keep = torch.rand(1, tokens.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(2)).round()
    part = list(governed_parts(state))[1]
    assert torch.autograd.gradcheck(lambda k: masked_attention(part, call, k), keep.requires_grad_(), fast_mode=True)


def test_predictors_are_counted_and_saved(model, images, tmp_path):
    made = ImagePredictor(4096), TextPredictor(4096)
    norm, entry, head = 2 * 4096, 4097 * 512, 513 * 256 + 257 * 128 + 129 * 2
    block = 2 * 2 * 512 + 3 * 512**2 + 513 * 512 + 513 * 2048 + 2049 * 512
    counted = [sum(parameter.numel() for parameter in part.parameters()) for part in made]
    assert counted == [norm + entry + 2 * block + head, norm + entry + head]
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    with torch.no_grad():
        assert torch.equal(masked(again, images)[0], masked(model, images)[0])


def test_what_cannot_be_sparsified(model, images):
    bare, (tokens, _) = plain(), text(2)
    with pytest.raises(ValueError, match=r"the model has none: put them in place by zoo.vision_language.add_pred"):
        bare.init_state(1, cache=DynamicLLaVA())
    with pytest.raises(ValueError, match="there are no predictors to train"):
        sparsified_loss(bare, images, tokens, tokens)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        sparsified_loss(model, images, tokens, tokens, temperature=0)
    with pytest.raises(ValueError, match=r"image_keep must be a share in \(0, 1\], got 0"):
        DynamicLLaVA(image_keep=0)
    with pytest.raises(ValueError, match="text_keep must be a share"):
        add_predictors(bare, text_keep=1.5)
    with pytest.raises(ValueError, match="layer must be below 3, the number of attention layers, got 3"):
        add_predictors(bare, layer=3)
    with pytest.raises(ValueError, match="4 and num_heads must divide width, got num_heads 8 and width 20"):
        add_predictors(bare, width=20)
    with pytest.raises(ValueError, match="has predictors already"):
        add_predictors(model)
    adem: Any = zoo.create_model("adem_vl_nano")
    with pytest.raises(ValueError, match="AdemVL has none: take a Llava"):
        add_predictors(adem)
    with pytest.raises(TypeError, match="keep_images"):
        add_predictors(bare, keep_images=0.5)
    state = model.init_state(2, cache=DynamicLLaVA(masked=True))
    with torch.no_grad():
        model(images, tokens.double().long(), state)
        with pytest.raises(ValueError, match="a masked call is a whole text"):
            model(images, tokens, state)

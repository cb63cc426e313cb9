"""LLaVA against transformers, its texts with images, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.checkpoints.convert import to_zoo
from zoo.vision_language import IMAGE, answer, encode_prompt, stream

IMAGE_ID, PATCHES = 7, 9


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A model of transformers of odd sizes, in float64."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=52, num_hidden_layers=3, num_attention_heads=3, image_size=12, patch_size=4,
        hidden_act="quick_gelu",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, image_seq_length=PATCHES)
    model = LlavaForConditionalGeneration(config).eval().double()
    for parameter in model.parameters():  # CLIP's are so small that nothing would be seen of the image
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return exact(model)


def exact(model: Any) -> Any:
    """With norms and turns of the decoder in float64, where transformers computes in float32 in any case."""
    language = model.model.language_model
    for parent in language.modules():
        for name, norm in parent.named_children():
            if type(norm).__name__ == "LlamaRMSNorm":
                exactly = torch.nn.RMSNorm(len(norm.weight), norm.variance_epsilon, dtype=torch.float64)
                exactly.weight = norm.weight
                setattr(parent, name, exactly)

    def turns(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        width = language.config.hidden_size // language.config.num_attention_heads
        angles = position_ids[..., None] / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    language.rotary_emb.forward = turns
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder) -> Any:
    return zoo.create_model(f"local-dir:{folder}", dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def nano() -> Any:
    torch.manual_seed(0)
    return zoo.create_model("llava_nano", dtype=torch.float64).eval()


def text(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


def asked() -> tuple[Tensor, Tensor]:
    """Two rows, one of which begins with its image."""
    place = [IMAGE_ID] * PATCHES
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return images, text([1, *place, 5, 9, 30, 2], [*place, 1, 4, 4, 8, 3])


def test_logits_of_a_published_folder(theirs, ours):
    images, tokens = asked()
    with torch.no_grad():
        expected = theirs(input_ids=tokens, pixel_values=images).logits
        found = ours(images, tokens)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
        other = ours(images.flip(0), tokens)
        alone = theirs(input_ids=tokens[:, -4:]).logits
        torch.testing.assert_close(ours(None, tokens[:, -4:]), alone, atol=1e-10, rtol=1e-10)
        labels = tokens.masked_fill(tokens == IMAGE_ID, -100)
        loss = theirs(input_ids=tokens, pixel_values=images, labels=labels).loss
        torch.testing.assert_close(ours(images, tokens, labels=labels).to(loss.dtype), loss)
    assert (other - found).abs().max() > 0.1


def test_greedy_text_of_a_published_folder(theirs, ours):
    images, tokens = asked()
    with torch.no_grad():
        expected = theirs.generate(
            input_ids=tokens, pixel_values=images, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    steps = list(stream(ours, images, tokens.tolist(), 12, temperature=0.0))
    assert torch.equal(torch.stack([step.tokens for step in steps], 1), expected[:, tokens.shape[1] :])


@pytest.mark.parametrize("change", [{"vision_feature_select_strategy": "full"}, {"vision_feature_layer": 1}])
def test_features_that_are_read(theirs, folder, tmp_path, change):
    """The class token, and another block."""
    from transformers import LlavaForConditionalGeneration

    theirs_too = exact(LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, **change).eval())
    theirs_too.save_pretrained(tmp_path)
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    images, tokens = asked()
    if "full" in change.values():
        tokens = torch.cat([text([IMAGE_ID], [IMAGE_ID]), tokens], 1)
        tokens[0, :2] = tokens[0, :2].flip(0)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images, tokens), theirs_too(input_ids=tokens, pixel_values=images).logits, atol=1e-10, rtol=1e-10
        )


def test_written_for_transformers_and_for_the_zoo(theirs, ours, folder, tmp_path):
    from transformers import LlavaForConditionalGeneration

    images, tokens = asked()
    zoo.convert(folder, tmp_path / "back", to="transformers")
    again = exact(LlavaForConditionalGeneration.from_pretrained(tmp_path / "back", dtype=torch.float64).eval())
    zoo.save_model(ours, tmp_path / "zoo")
    saved: Any = zoo.create_model(f"local-dir:{tmp_path / 'zoo'}", dtype=torch.float64).eval()
    assert saved.config == ours.config
    with torch.no_grad():
        expected = ours(images, tokens)
        torch.testing.assert_close(again(input_ids=tokens, pixel_values=images).logits, expected)
        assert torch.equal(saved(images, tokens), expected)
    with pytest.raises(ValueError, match="no words for"):  # of the last norm
        zoo.save_model(zoo.create_model("llava_nano"), tmp_path / "nano")
        zoo.convert(tmp_path / "nano", tmp_path / "lost", to="transformers")


def test_names_of_older_files(theirs, ours):
    """As transformers wrote them before 4.52."""
    old = {}
    for key, tensor in theirs.state_dict().items():
        key = key.removeprefix("model.")
        key = key.replace("language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head.")
        old[key.replace("vision_tower.", "vision_tower.vision_model.")] = tensor
    converted = to_zoo(old)
    assert converted.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in converted.items())


def test_prompts_have_a_place_for_each_feature(nano):
    tokenizer = zoo.load_tokenizer("llava_nano")
    ids = encode_prompt(nano, tokenizer, f"a{IMAGE}b{IMAGE}c")
    assert ids == [0, ord("a"), *[255] * 37, ord("b"), *[255] * 37, ord("c")]


def test_rows_are_independent_and_padding_changes_nothing(nano):
    tokenizer = zoo.load_tokenizer("llava_nano")
    images = torch.rand(2, 1, 24, 24, dtype=torch.float64)
    prompts = [f"{IMAGE}what is at b2? ", f"{IMAGE}caption: "]
    together = answer(nano, images, prompts, tokenizer, 8)
    assert together == [answer(nano, images[i : i + 1], prompts[i], tokenizer, 8)[0] for i in range(2)]
    assert together == answer(nano, images, [p.removeprefix(IMAGE) for p in prompts], tokenizer, 8)


def test_from_a_state_token_by_token(nano):
    images, state = torch.rand(1, 1, 24, 24, dtype=torch.float64), nano.init_state(1)
    tokens = text([0, *[255] * 37, 65, 66, 67])
    with torch.no_grad():
        whole = nano(images, tokens)
        parts = [nano(images, tokens[:, :38], state), *(nano(None, tokens[:, i : i + 1], state) for i in (38, 39, 40))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("encoder", ["vim_nano", "vit_nano"])
def test_any_encoder_and_language_model(encoder):
    model: Any = zoo.create_model(
        "llava_nano", vision=encoder, vision_options={"img_size": 24, "patch_size": 4, "depth": 2},
        language="mamba2_nano", language_options={"depth": 1}, class_feature=False, dtype=torch.float64,
    )  # fmt: skip
    loss = model(torch.randn(2, 1, 24, 24, dtype=torch.float64)).square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_cannot_be_read(nano):
    tokenizer, images = zoo.load_tokenizer("llava_nano"), torch.rand(2, 1, 24, 24, dtype=torch.float64)
    place = [255] * 37
    with pytest.raises(ValueError, match="74 places for features of images, and no image was given"):
        nano(None, text([*place, *place]))
    with pytest.raises(ValueError, match=r"for each of 2 images, 74 in all, got \[37\]"):
        nano(images, text(place))
    with pytest.raises(ValueError, match=r"got \[36, 38\]"):
        nano(images, text([0, 0, *place[1:]], [255, *place]))
    with pytest.raises(ValueError, match="there is nothing to read"):
        nano(None)
    with pytest.raises(ValueError, match="got 1 of them and 0 images: give an image"):
        answer(nano, None, f"{IMAGE}caption: ", tokenizer)
    with pytest.raises(ValueError, match="got 1 of them and 2 images"):
        answer(nano, images, f"{IMAGE}caption: ", tokenizer)
    with pytest.raises(ValueError, match="a text must follow"):
        encode_prompt(nano, tokenizer, f"see {IMAGE}")
    with pytest.raises(ValueError, match="ends in an image"):
        stream(nano, images[:1], [place], 3)
    for options, error in (
        ({"image_token": 256}, "image_token must be one of the 256 ids"),
        ({"num_blocks": 4}, "at most the 3 blocks"),
        ({"vision": "shvit_nano", "vision_options": {}}, "images over patches"),
        ({"language": "vit_nano", "language_options": {}}, "image_token must be one of the 0 ids"),
        ({"vision": "vit_nan"}, "did you mean"),
    ):
        with pytest.raises(ValueError, match=error):
            zoo.create_model("llava_nano", **options)
    with pytest.raises(TypeError, match="no option 'dept'"):
        zoo.create_model("llava_nano", language_options={"dept": 1})


def test_what_transformers_alone_has(folder, tmp_path):
    import json

    for change, error in (
        ({"vision_feature_layer": [1, 2]}, "vision_feature_layer must be one of"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act must be 'gelu'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "must be a clip_vision_model"),
        ({"text_config": {"model_type": "gpt2"}}, "the language model must be one of"),
    ):
        content = json.loads((folder / "config.json").read_text()) | change
        (tmp_path / "config.json").write_text(json.dumps(content))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=error):
            zoo.create_model(f"local-dir:{tmp_path}")

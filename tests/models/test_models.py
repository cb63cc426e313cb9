"""What holds for every registered model; a new family is covered by being registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from cases import tracking
from cases.names import by_kind

LANGUAGE = zoo.list_models("*_nano", task="language")
VISION = zoo.list_models("*_nano", task="image-classification")
GENERATION = zoo.list_models("*_nano", task="image-generation")
TEXT = zoo.list_models("*_nano", task="text-classification")
SEGMENTATION = zoo.list_models("*_nano", task="segmentation")
REGRESSION = zoo.list_models("*_nano", task="sequence-regression")
WITHOUT_BRANCHES = ("simplenet_nano", "lightcnn_nano")  # that drop_path_rate could drop
SEQUENCES = zoo.list_models("*_nano", task="sequence-classification")
CODES = zoo.list_models("*_nano", task="image-tokenization")
DIFFUSION = zoo.list_models("*_nano", task="image-diffusion")
SPEECH = zoo.list_models("*_nano", task="speech-enhancement")
WORLDS = zoo.list_models("*_nano", task="world-model")
CLOUDS = zoo.list_models("*_nano", task="point-classification")
CAMERAS = zoo.list_models("*_nano", task="birds-eye-occupancy")
SERIES = zoo.list_models("*_nano", task="anomaly-detection")
VIDEO = zoo.list_models("*_nano", task="video-segmentation")
SIGHT = zoo.list_models("*_nano", task="vision-language")
CLIPS = [name for kind in ("diffusion", "autoencoding") for name in zoo.list_models("*_nano", task=f"video-{kind}")]
OTHERS = SEQUENCES + CODES + DIFFUSION + SERIES + SPEECH + VIDEO + WORLDS + SIGHT + CLOUDS + CAMERAS + CLIPS
NANO = LANGUAGE + TEXT + VISION + GENERATION + SEGMENTATION + REGRESSION + OTHERS


def inputs(model: Any, batch: int = 2, length: int = 20) -> Tensor:
    """Random tokens, vectors or images of the shape the model wants."""
    config = model.config
    if hasattr(config, "vocab_size"):
        return torch.randint(0, config.vocab_size, (batch, length))
    if hasattr(config, "in_features"):
        shape = (batch, getattr(config, "length", length), config.in_features)
        return torch.randn(shape, dtype=next(model.parameters()).dtype)
    if hasattr(config, "input_shape"):
        return torch.randn(batch, *config.input_shape, dtype=next(model.parameters()).dtype)
    if hasattr(config, "num_levels"):
        return torch.randint(0, config.num_levels, (batch, config.in_chans, *config.image_shape))
    return torch.randn(batch, config.in_chans, *config.image_shape, dtype=next(model.parameters()).dtype)


def loss_of(model: Any, x: Tensor) -> Tensor:
    """What training minimises: the model's loss and the side losses of its layers."""
    if hasattr(model, "track"):
        return tracking.loss(model, x)
    scored = x.is_floating_point() or hasattr(model.config, "num_classes")
    loss = model(x).square().mean() if scored else model(x, labels=x)
    return loss + sum(zoo.auxiliary_losses(model).values())


def opened(model: Any) -> Any:
    """The model with random numbers where parameters start at zero: a branch that starts closed hides what is in it."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", NANO)
def test_every_parameter_gets_a_finite_gradient(name):
    model: Any = opened(zoo.create_model(name))
    loss = loss_of(model, inputs(model, batch=4))
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), key


@pytest.mark.parametrize("name", NANO)
def test_an_empty_batch(name):
    """Gives an empty batch, with gradients of zero; of tokens also a loss of zero, from a state and packed."""
    model: Any = zoo.create_model(name).eval()
    x = inputs(model, batch=1)[:0]
    y = model(x)
    y.square().sum().backward()
    assert y.shape == (0, *model(inputs(model, batch=1)).shape[1:])
    if name in LANGUAGE:
        loss = model.train()(x, labels=x, seq_idx=torch.zeros_like(x))
        loss.backward()
        state = model.eval().init_state(0)
        parts = [model(part, state) for part in (x[:, :5], x[:, 5:6], x[:, 6:])]
        assert loss == 0 and torch.cat(parts, 1).shape == y.shape
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NANO)
def test_batch_rows_are_independent(name):
    model: Any = opened(zoo.create_model(name, dtype=torch.float64)).eval()
    x = inputs(model, batch=3)
    close(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize("name", NANO)
def test_checkpointed_gradients_are_the_same(name):
    model: Any = opened(zoo.create_model(name)).train()
    x = inputs(model)
    gradients: list[list[Tensor]] = []
    for enable in (False, True):
        model.zero_grad()
        torch.manual_seed(0)
        model.set_grad_checkpointing(enable)
        loss_of(model, x).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NANO)
def test_save_and_rebuild(name, tmp_path):
    model: Any = zoo.create_model(name).eval()
    zoo.save_model(model, tmp_path)
    x = inputs(model)
    for rebuilt in (
        zoo.create_model(f"local-dir:{tmp_path}"),
        zoo.create_model(name, checkpoint_path=tmp_path),
        zoo.create_model(name, checkpoint_path=tmp_path / "model.safetensors"),
    ):
        assert torch.equal(rebuilt.eval()(x), model(x)) and rebuilt.config == model.config


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_finite_and_keeps_the_sensitive_parameters_wide(name, dtype):
    torch.manual_seed(0)
    model: Any = zoo.create_model(name, dtype=dtype).train()
    x = inputs(model)
    loss = loss_of(model, x)
    loss.backward()
    torch.manual_seed(0)
    expected = loss_of(zoo.create_model(name), x if x.dtype == torch.int64 else x.float())
    assert torch.isfinite(loss) and abs(loss.item() - expected.item()) < 0.05 * (1 + abs(expected.item()))
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    wide = {key.rpartition(".")[2] for key, p in model.named_parameters() if p.dtype == torch.float32}
    assert wide == {name for module in model.modules() for name in getattr(module, "float32_parameters", ())}


@pytest.mark.parametrize("name", by_kind(NANO))
def test_is_one_graph(name):
    """What training minimises, as TorchDynamo traces it; the compiler behind it has the next test."""
    model: Any = opened(zoo.create_model(name, dtype=torch.float64)).eval()
    x = inputs(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(loss_of(compiled, x), loss_of(model, x))


@pytest.mark.parametrize("name", by_kind(NANO, ("mamba2_nano", "moe_nano", "shvit_nano")))
def test_compiles_as_one_graph(name):
    """In float64: a norm of a nearly empty vector, as GLA's of a first token, magnifies the rounding of both runs."""
    model: Any = opened(zoo.create_model(name, dtype=torch.float64)).eval()
    x = inputs(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    loss, expected = loss_of(compiled, x), loss_of(model, x)
    torch.testing.assert_close(loss, expected)
    # what training mode alone reads
    beside = ("mtp.", "micro.", "embedder.", "log_variance.", "out_log_variance.", "reward.", "end.", "agent.")
    read = [p for name, p in model.named_parameters() if not name.startswith(beside)]
    gradients = torch.autograd.grad(loss, read)
    for a, b in zip(gradients, torch.autograd.grad(expected, read), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", by_kind(NANO))
def test_exports(name):
    model: Any = opened(zoo.create_model(name)).eval()
    x = inputs(model)
    program = torch.export.export(model, (x,))
    y = inputs(model)
    torch.testing.assert_close(program.module()(y), model(y))


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_whole_equals_prefix_then_steps(name):
    model: Any = zoo.create_model(name, dtype=torch.float64).eval()
    tokens = inputs(model)
    whole, state = model(tokens), model.init_state(2, max_length=20)
    parts = [model(tokens[:, :7], state), model(tokens[:, 7:12], state)]
    parts += [model(tokens[:, t : t + 1], state) for t in range(12, 20)]
    close(torch.cat(parts, dim=1), whole)
    close(model(tokens, logits_to_keep=3), whole[:, -3:])
    assert state.nbytes >= 4 * model.state_size(20) * 2


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_is_causal(name):
    model: Any = zoo.create_model(name, dtype=torch.float64).eval()
    tokens = inputs(model, batch=1)
    expected = model(tokens)
    for t in range(1, 20):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % model.config.vocab_size
        logits = model(changed)
        # not bit for bit: products over other rows and Fourier transforms of the row round otherwise
        torch.testing.assert_close(logits[:, :t], expected[:, :t], atol=1e-12, rtol=1e-12)
        assert (logits[:, t] - expected[:, t]).abs().max() > 1e-6


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_loss_has_the_meaning_of_transformers(name):
    model: Any = zoo.create_model(name, dtype=torch.float64)
    tokens = inputs(model)
    labels = tokens.masked_fill(torch.rand(tokens.shape) < 0.3, -100)
    expected = nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    close(model(tokens, labels=labels), expected)


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_packed_loss_scores_no_token_from_another_sequence(name):
    model: Any = zoo.create_model(name, dtype=torch.float64)
    tokens = inputs(model, batch=1)
    seq_idx = torch.tensor([[-1] * 3 + [0] * 8 + [1] * 9])
    losses = [model(tokens[:, a:b], labels=tokens[:, a:b]) * (b - a - 1) for a, b in ((3, 11), (11, 20))]
    close(model(tokens, labels=tokens, seq_idx=seq_idx), sum(losses) / 15)


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_generates_from_the_state(name):
    model: Any = zoo.create_model(name, dtype=torch.float64).train()
    prompt = inputs(model, length=5)
    generated = zoo.generate(model, prompt, 12, temperature=0)
    assert model.training and generated.shape == (2, 17)
    expected = prompt
    for _ in range(12):
        expected = torch.cat([expected, model.eval()(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, expected)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), prompt], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 5] * 2)
    assert torch.equal(zoo.generate(model, padded, 12, temperature=0, attention_mask=mask)[:, 4:], expected)


@pytest.mark.parametrize("name", VISION)
def test_vision_has_the_surface_of_timm(name):
    model: Any = zoo.create_model(name).eval()
    x = inputs(model)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert model.get_classifier().weight.shape == (model.num_classes, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(x), pooled)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.pretrained_cfg["num_classes"] == 7
    assert model.pretrained_cfg["input_size"] == (model.config.in_chans, *model.config.image_shape)
    last, maps = model.forward_intermediates(x, indices=2)
    assert torch.equal(last, features) and len(maps) == 2
    info = model.feature_info[-1]
    assert maps[-1].shape[1] == info["num_chs"] and maps[-1].shape[2] == x.shape[2] // info["reduction"]
    assert info["module"] in dict(model.named_modules())


@pytest.mark.parametrize("name", VISION)
def test_vision_options_change_the_model(name):
    noise = {"drop_rate": 0.5} if name in WITHOUT_BRANCHES else {"drop_path_rate": 0.5}
    model: Any = zoo.create_model(name, num_classes=3, in_chans=3, img_size=12, **noise)
    x = torch.randn(4, 3, 12, 12)
    assert model(x).shape == (4, 3)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))

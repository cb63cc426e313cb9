"""S4 over token sequences: padding, pairs, the sizes of the Long Range Arena."""

from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.layers.ssm import SequenceNorm


def settled(**options: Any) -> Any:
    """A nano in float64 and eval mode with statistics of its own."""
    torch.manual_seed(0)
    model: Any = zoo.create_model("s4_text_nano", dtype=torch.float64, **options)
    for module in model.modules():
        if isinstance(module, SequenceNorm):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("prenorm", [True, False])
@pytest.mark.parametrize("pair", [True, False])
def test_padding_changes_nothing(prenorm, pair):
    model = settled(prenorm=prenorm, pair=pair)
    tokens = torch.randint(0, 15, (3, 2, 20) if pair else (3, 20))
    expected = model(tokens)
    for padded in (nn.functional.pad(tokens, (0, 13), value=-1), nn.functional.pad(tokens, (0, 1), value=-100)):
        torch.testing.assert_close(model(padded), expected, atol=1e-10, rtol=1e-10)
    mixed = nn.functional.pad(tokens, (0, 5), value=-1)
    mixed[1] = torch.randint(0, 15, mixed[1].shape)
    torch.testing.assert_close(model(mixed)[[0, 2]], expected[[0, 2]], atol=1e-10, rtol=1e-10)


def test_every_token_counts_from_both_sides():
    model = settled()
    tokens = torch.randint(0, 15, (1, 20))
    features = model.embedding(tokens).detach().requires_grad_()
    middle = model.blocks[0](features)[0, 10].sum()
    assert torch.autograd.grad(middle, features)[0].abs().sum(-1).gt(0).all()
    one_way = settled(bidirectional=False)
    features = one_way.embedding(tokens).detach().requires_grad_()
    reached = torch.autograd.grad(one_way.blocks[0](features)[0, 10].sum(), features)[0].abs().sum(-1)[0]
    assert reached[:11].gt(0).all() and not reached[11:].any()


def test_statistics_in_training_leave_padding_out():
    torch.manual_seed(0)
    x, mask = torch.randn(3, 7, 4, dtype=torch.float64), torch.rand(3, 7) < 0.6
    ours, plain = SequenceNorm(4).double(), nn.BatchNorm1d(4).double()
    expected = plain(x[mask])
    torch.testing.assert_close(ours(x, mask)[mask], expected)
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], tensor)
    whole = torch.ones_like(mask)
    torch.testing.assert_close(SequenceNorm(4).double()(x, whole), SequenceNorm(4).double()(x))


def test_pairs_are_read_by_one_network_and_compared():
    model = settled(pair=True, num_classes=3)
    tokens = torch.randint(0, 15, (2, 2, 9))
    a, b = (settled_features(model, tokens[:, i]) for i in (0, 1))
    hidden = torch.nn.functional.gelu(model.compare[0](torch.cat([a, b, a - b, a * b], 1)))
    torch.testing.assert_close(model(tokens), model.head(hidden), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(model.forward_head(model.forward_features(tokens), pre_logits=True), hidden)


def settled_features(model: Any, rows: torch.Tensor) -> torch.Tensor:
    x = model.embedding(rows)
    for block in model.blocks:
        x = block(x)
    return model.norm(x).mean(1)


def parameters(dim: int, depth: int, modes: int, vocabulary: int, classes: int, pair: bool, prenorm: bool) -> int:
    """Of the layer list: of every channel log dt and D, C of two directions; A (2 numbers a mode), B and P once; the
    gated linear layer, norms, embedding, classifier."""
    block = 2 * dim + 2 * dim * modes * 2 + 6 * modes + 2 * dim * (dim + 1) + 2 * dim
    compare = 4 * dim * dim + dim if pair else 0
    return vocabulary * dim + depth * block + 2 * dim * prenorm + compare + classes * (dim + 1)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("s4_text_lra_listops", (256, 6, 2, 15, 10, False, False)),
        ("s4_text_lra_text", (256, 6, 2, 256, 2, False, True)),
        ("s4_text_lra_retrieval", (256, 6, 2, 256, 2, True, True)),
    ],
)
def test_parameters_of_the_long_range_arena(name, sizes):
    assert zoo.model_info(name).num_parameters == parameters(*sizes)


def test_timm_like_surface():
    model: Any = zoo.create_model("s4_text_nano", num_classes=0)
    tokens = torch.randint(0, 15, (2, 8))
    assert model(tokens).shape == (2, 64) == (2, model.num_features)
    model.reset_classifier(5)
    assert model(tokens).shape == (2, 5) and model.get_classifier().out_features == model.num_classes == 5


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 3), r"tokens must be \(B, T\) int64 with T >= 1, got \(2, 3\) torch.float32"),
        (torch.zeros(2, 2, 3, dtype=torch.int64), r"\(B, T\) int64"),
        (torch.zeros(2, 0, dtype=torch.int64), "T >= 1"),
        (torch.full((2, 3), 15), "tokens must be below vocab_size 15, got 15"),
    ],
)
def test_errors(tokens, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("s4_text_nano")(tokens)
    with pytest.raises(ValueError, match=r"\(B, 2, T\)"):
        zoo.create_model("s4_text_nano", pair=True)(torch.zeros(2, 3, dtype=torch.int64))

"""MAELRE: without merging a plain encoder; three kinds of input; padding; FLOPs against length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from zoo.benchmarks.common import fitted_exponent
from zoo.benchmarks.merging import SIDES, flops

PLAIN = SIDES["plain"]


def built(**options: Any) -> Any:
    return zoo.create_model("maelre_nano", dtype=torch.float64, **options).eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def text(length: int = 50, batch: int = 3) -> Tensor:
    return torch.randint(0, 15, (batch, length))


def peer_of(block: Any) -> Any:
    """torch's own encoder layer with a block's weights."""
    peer = torch.nn.TransformerEncoderLayer(
        48, 4, 96, 0.0, F.gelu, batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {
        "mixer.qkv.": "self_attn.in_proj_", "mixer.proj.": "self_attn.out_proj.", "mlp_norm.": "norm2.",
        "norm.": "norm1.", "mlp.fc1.": "linear1.", "mlp.fc2.": "linear2.",
    }  # fmt: skip
    split = {key: key.rpartition(".") for key in block.state_dict()}
    peer.load_state_dict({names[f"{at}."] + kind: block.state_dict()[key] for key, (at, _, kind) in split.items()})
    return peer.eval()


@pytest.mark.parametrize("options", [PLAIN, {"merge_rate": 0.0, "max_keys": 50}])
def test_without_merging_and_with_room_for_all_keys_it_is_a_plain_encoder(options):
    """torch's, of layers with norms first, over embeddings and sinusoids."""
    model, tokens = built(**options), text()
    angle = torch.arange(50, dtype=torch.float64)[:, None] / 10000 ** (torch.arange(0, 48, 2).double() / 48)
    x = model.embedding(tokens) + torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    for block in model.blocks:
        x = peer_of(block)(x)
    close(model(tokens), model.head(model.norm(x).mean(1)))


def test_what_is_left_does_not_depend_on_the_content_and_stands_for_all():
    model = built()
    for tokens in (text(), torch.zeros_like(text())):
        x, size = model.encode(tokens)
        assert x.shape == (3, 13, 48) and (size.sum(1) == 50).all()
    model = built(stage_depth=2, merge_rate=0.25)
    assert model.encode(text())[0].shape == (3, 38, 48)


@pytest.mark.parametrize("options", [{"max_keys": 6}, {"merge_rate": 0.3, "merge_window": None}])
def test_padding_changes_nothing_wherever_it_stands(options):
    for pair in (False, True):
        model = built(pair=pair, **options)
        tokens = torch.randint(0, 15, (3, 2, 20) if pair else (3, 20))
        expected = model(tokens)
        for padded in (F.pad(tokens, (0, 13), value=-1), F.pad(tokens, (3, 1), value=-100)):
            close(model(padded), expected)


def test_series_and_images_are_patches_of_the_same_encoder():
    """With the same blocks; of an image of one column the patches are those of a series."""
    series = built(input="series", in_features=2, patch_size=4)
    x = torch.randn(3, 41, 2, dtype=torch.float64)
    assert series(x).shape == (3, 10) and series.encode(x)[1].sum(1).tolist() == [11] * 3
    close(series(F.pad(x, (0, 0, 0, 3))), series(x))
    image = built(input="image", in_chans=3, patch_size=2)
    y = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    assert image(y).shape == (2, 10) and image.encode(y)[1].sum(1).tolist() == [24] * 2
    first = image.read(y, image.config)[0][:, 0]
    assert torch.equal(first, y[:, :, :2, :2].flatten(1))
    shared = {name: p.shape for name, p in image.named_parameters() if name.startswith("blocks")}
    assert shared == {name: p.shape for name, p in built().named_parameters() if name.startswith("blocks")}
    column = built(input="image", in_chans=2)
    series = built(input="series", in_features=2)
    series.load_state_dict(column.state_dict())
    close(column(x.transpose(1, 2)[..., None]), series(x))


@pytest.mark.parametrize(("input", "shape"), [("series", (4, 40, 1)), ("image", (4, 1, 8, 8))])
def test_other_inputs_reach_every_parameter(input, shape):
    model = built(input=input).train()
    model(torch.randn(shape, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_flops_against_length():
    """Of a row: linear, where those of the plain encoder grow with the square of long sequences."""
    merging, plain = ([flops(side, length) for length in (1024, 4096)] for side in ("merging", "plain"))
    assert fitted_exponent((1024, 4096), merging) < 1.02 and fitted_exponent((1024, 4096), plain) > 1.6
    assert merging[1] < plain[1] / 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_rate": 0.7}, r"the rate must be in \[0, 0.5\], got 0.7"),
        ({"input": "audio"}, "input must be one of text, series, image, got 'audio'"),
        ({"input": "image", "pair": True}, "pairs are of texts, got input 'image'"),
        ({"num_heads": 5}, "num_heads must divide dim: got dim 48, num_heads 5"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        built(**options)


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"series must be \(B, T, 2\) floats with T >= 1, got \(3, 5, 1\)"):
        built(input="series", in_features=2)(torch.zeros(3, 5, 1))
    with pytest.raises(ValueError, match=r"H and W multiples of patch_size 4, got \(2, 1, 8, 6\)"):
        built(input="image", patch_size=4)(torch.zeros(2, 1, 8, 6))
    with pytest.raises(ValueError, match="below vocab_size 15, got 15"):
        built()(torch.full((1, 4), 15))

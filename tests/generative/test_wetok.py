"""WeTok: the quantiser's identities, sizes, scales, the generative decoder, the authors' names."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import zoo
from zoo.generative import GroupedLookupFree, generative

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(("groups", "bits"), [(2, 4), (1, 8), (8, 1)])
def test_codes_and_indices_are_each_others_inverse(groups, bits):
    """One group is lookup-free quantisation, groups of one bit are signs alone."""
    quantizer = GroupedLookupFree(groups, bits)
    z = torch.randn(2, 8, 3, 5)
    z[0, 0, 0, 0] = 0.0  # negative
    q = quantizer(z)
    assert torch.equal(q, torch.where(z > 0, 1.0, -1.0)) and q[0, 0, 0, 0] == -1
    indices = quantizer.indices(z)
    assert indices.shape == (2, 3, 5, groups) and indices.max() < 2**bits
    assert torch.equal(quantizer.codes(indices), q)
    bit = (q[:, 0] > 0).long() + (2 * (q[:, 1] > 0).long() if bits > 1 else 0)
    assert torch.equal(indices[..., 0] % (2 if bits == 1 else 4), bit)  # the first channel is the lowest bit


def test_the_gradient_goes_straight_through():
    z, weight = torch.randn(1, 4, 2, 2, requires_grad=True), torch.randn(1, 4, 2, 2)
    (GroupedLookupFree(2, 2)(z) * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_entropies_written_out():
    """Over all codes of all channels at once: a position's entropy is the same in groups, that of the mean is not."""
    z, temperature = torch.randn(3, 4, 2, 2, dtype=torch.float64), 1.5
    codes = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    rows = z.movedim(1, -1).reshape(-1, 4)
    law = torch.stack([torch.stack([(2 * row @ c / temperature).exp() for c in codes]) for row in rows])
    law = law / law.sum(1, keepdim=True)
    whole = -(law * law.log()).sum(1).mean()
    sample, usage = GroupedLookupFree(1, 4, temperature=temperature).entropies(z)
    torch.testing.assert_close(sample, whole)
    torch.testing.assert_close(usage, -(law.mean(0) * law.mean(0).log()).sum())
    grouped = GroupedLookupFree(2, 2, temperature=temperature, shared_usage=False)
    per_group, shared = grouped.entropies(z), GroupedLookupFree(2, 2, temperature=temperature).entropies(z)
    torch.testing.assert_close(2 * per_group[0], whole)  # the mean of two groups, whose sum is the whole's
    assert per_group[0] == shared[0] and 2 * per_group[1] > usage and shared[1] > per_group[1]


def test_losses_of_saturated_codes_have_finite_gradients():
    z = torch.full((1, 8, 2, 2), 30.0).requires_grad_()
    losses = GroupedLookupFree(2, 4).losses(z)
    assert losses["entropy"] == 0 and losses["commit"].item() == pytest.approx(0.25 * 29**2)
    sum(losses.values()).backward()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "count", "ratio", "bits"),
    [
        ("wetok_24", 448_405_827, 24, 64), ("wetok_48", 447_881_507, 48, 32), ("wetok_192", 460_294_179, 192, 32),
        ("wetok_768", 1_673_089_059, 768, 32),
    ],
)  # fmt: skip
def test_published_sizes(name, count, ratio, bits):
    model: Any = zoo.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.config.compression_ratio == ratio and model.config.code_dim == bits


def test_encoding_and_decoding_are_the_forward_pass():
    for name in ("wetok_nano", "wetok_scales_nano"):
        model: Any = zoo.create_model(name).eval()
        images = torch.randn(2, 1, 8, 8)
        tokens = model.encode(images)
        assert tokens.shape == (2, model.config.num_tokens, 2) and tokens.dtype == torch.int64
        torch.testing.assert_close(model.decode(tokens), model(images))
    model = zoo.create_model("wetok_nano").eval()
    wide = torch.randn(1, 1, 8, 12)
    torch.testing.assert_close(model.decode(model.encode(wide), shape=(4, 6)), model(wide))


def test_a_scale_holds_what_the_coarser_ones_left():
    model: Any = zoo.create_model("wetok_scales_nano", dtype=torch.float64).eval()
    z = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    q, _, maps = model.quantised(z)
    rest, total = z, torch.zeros_like(z)
    for index, (side, codes) in enumerate(zip((1, 2, 4), maps, strict=True)):
        small = rest.unflatten(3, (side, -1)).unflatten(2, (side, -1)).mean((3, 5))
        assert torch.equal(codes, torch.where(small > 0, 1.0, -1.0).double())
        large = F.interpolate(codes, (4, 4), mode="bilinear") if side < 4 else codes
        rest, total = rest - 0.5**index * large, total + 0.5**index * large
    torch.testing.assert_close(q, total)
    assert len({tuple(m.shape[2:]) for m in maps}) == 3


def test_the_generative_decoder_begins_as_the_first_and_then_hears_the_noise():
    first: Any = zoo.create_model("wetok_nano").eval()
    second = generative(first)
    images, shape = torch.randn(2, 1, 8, 8), (2, 8, 4, 4)
    for _ in range(2):
        torch.testing.assert_close(second(images), first(images))
    torch.testing.assert_close(second(images, torch.randn(shape)), first(images))
    assert not any(p.requires_grad for p in second.encoder.parameters())
    torch.nn.init.normal_(second.decoder.conv_in.weight[:, 8:].data)
    with torch.no_grad():
        draws = torch.stack([second(images) for _ in range(3)])
    assert (draws.var(0) > 0).all()
    noise = torch.randn(shape)
    assert torch.equal(second(images, noise), second(images, noise))
    with pytest.raises(ValueError, match="the model has a generative decoder already"):
        generative(second)
    with pytest.raises(ValueError, match="noise is for a generative decoder"):
        first(images, noise)


def test_a_generative_model_is_saved_and_read_as_any_other(tmp_path):
    """And weights without noise make one, from a name or a folder."""
    first: Any = zoo.create_model("wetok_nano", pretrained=True).eval()
    images, noise = torch.randn(2, 1, 8, 8), torch.randn(2, 8, 4, 4)
    made = generative(first)
    torch.nn.init.normal_(made.decoder.conv_in.weight[:, 8:].data)
    zoo.save_model(made, tmp_path / "second")
    again: Any = zoo.create_model(f"local-dir:{tmp_path / 'second'}").eval()
    assert torch.equal(again(images, noise), made(images, noise)) and not torch.equal(again(images), again(images))
    zoo.save_model(first, tmp_path / "first")
    for name in ("wetok_nano", f"local-dir:{tmp_path / 'first'}"):
        begun: Any = zoo.create_model(name, pretrained=":" not in name, generative=True).eval()
        assert torch.equal(begun(images, noise), first(images))


def test_new_pixels_stand_in_depth_order():
    """Of four times the channels the first quarter is the pixels at the top left."""
    from zoo.generative.autoencoder import Upsample

    layer = Upsample(2)
    torch.nn.init.zeros_(layer.conv1.weight)
    layer.conv1.bias.data = torch.arange(8.0)
    y = layer(torch.zeros(1, 2, 1, 1))[0]
    assert torch.equal(y, torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 3.0], [5.0, 7.0]]]))


def test_adaptive_norm_written_out():
    from zoo.generative.autoencoder import AdaptiveGroupNorm

    norm = AdaptiveGroupNorm(3, 4, 2).double()
    x, q = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(2, 3, 2, 3, dtype=torch.float64)
    parts = x.view(2, 2, -1)
    parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    mean = q.sum((2, 3)) / 6
    spread = ((q - mean[..., None, None]).square().sum((2, 3)) / 5 + 1e-6).sqrt()
    wanted = norm.gamma(spread)[..., None, None] * parts.view_as(x) + norm.beta(mean)[..., None, None]
    torch.testing.assert_close(norm(x, q), wanted)
    assert norm(x, q[..., :1, :1]).isfinite().all()  # a single position has no spread


@pytest.mark.parametrize("averaged", [False, True])
def test_files_of_the_authors_load(averaged, tmp_path):
    """A training file holds losses besides, and averages under names without dots, which count."""
    model: Any = zoo.create_model("wetok_nano")
    tensors = model.state_dict()
    assert {
        "encoder.down.0.downsample.bias", "encoder.down.1.block.0.nin_shortcut.weight",
        "encoder.mid_block.0.norm2.bias", "encoder.conv_out.weight", "decoder.up.1.upsample.conv1.weight",
        "decoder.adaptive.0.gamma.weight", "decoder.up.0.block.0.conv2.weight", "decoder.conv_in.bias",
    } <= tensors.keys()  # fmt: skip
    file = {**tensors, "loss.discriminator.conv_in.weight": torch.zeros(1)}
    if averaged:
        file = {name: torch.zeros_like(tensor) for name, tensor in file.items()}
        file |= {"model_ema." + name.replace(".", ""): tensor for name, tensor in tensors.items()}
        file["model_ema.decay"] = torch.zeros(())
    torch.save({"state_dict": file}, tmp_path / "last.ckpt")
    loaded: Any = zoo.create_model("wetok_nano", checkpoint_path=tmp_path / "last.ckpt")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": (16, 60)}, "dims must be multiples of norm_groups 8"),
        ({"img_size": 9}, "img_size must be a multiple of 2 pixels, got 9"),
        ({"scales": (1, 2)}, r"scales must rise from 1 or more to the side of the latents, \(4, 4\), got \(1, 2\)"),
        ({"scales": (2, 1, 4)}, "scales must rise"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"groups": 0}, "groups must be"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("wetok_nano", **options)


def test_errors_of_inputs():
    model: Any = zoo.create_model("wetok_nano")
    with pytest.raises(ValueError, match=r"sides that are multiples of 2, got \(1, 1, 7, 8\)"):
        model(torch.zeros(1, 1, 7, 8))
    with pytest.raises(ValueError, match=r"must be floating point, got torch.uint8"):
        model(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"indices must have shape \(batch, 16, 2\)"):
        model.decode(torch.zeros(1, 15, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="the configuration's sides"):
        zoo.create_model("wetok_scales_nano")(torch.zeros(1, 1, 16, 16))

"""Compressed models: what is stored, what they compute, that they save and load, and what is refused."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import zoo
from zoo.cli import main
from zoo.layers.quant import (
    LAYOUTS,
    Format,
    Record,
    check_trainable,
    compressible,
    count_parameters,
    matrices,
    records,
    stored_bytes,
)
from zoo.quantize import METHODS, Calibration
from zoo.quantize.rounding import grid, nearest_codes

SOME = [
    "transformer_nano", "mamba_nano", "moe_nano", "gpt_oss_nano", "deepseek_nano", "rwkv7_nano", "vit_nano",
    "m3vit_nano", "vovnet_nano", "shvit_nano", "revunet3d_nano",
]  # fmt: skip


def inputs(model: Any) -> Tensor:
    config = model.config
    if hasattr(config, "vocab_size"):
        return torch.randint(0, config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    return torch.randn(2, config.in_chans, *config.image_shape, generator=torch.Generator().manual_seed(0))


def calibration(model: Any) -> Calibration:
    return Calibration([inputs(model)])


@pytest.mark.parametrize(("bits", "size", "symmetric", "scale", "by_hand"), [
    (4, 32, False, "bfloat16", 4 + 24 / 32), (3, 64, True, "bfloat16", 3 + 16 / 64),
    (8, None, True, "float32", 8 + 32 / 128), (1, 16, False, "float32", 1 + 40 / 16),
    (4, 128, False, "bfloat16", 4 + 24 / 128),
])  # fmt: skip
def test_stored_bytes_are_those_of_the_formula(bits, size, symmetric, scale, by_hand):
    form = Format(bits=bits, group_size=size, symmetric=symmetric, scale_dtype=scale)
    record = Record((3, 5, 128), form)
    assert record.nbytes == form.nbytes(record.shape) == 3 * 5 * 128 * by_hand / 8


def test_stored_bytes_of_blocks_and_outliers():
    """EasyQuant's 4 + rho (16 + 32) + 16 / C bits, with blocks of 2 rows, of which 5 rows make 3."""
    form = Format(bits=4, group_size=None, symmetric=True, group_rows=2, outliers=7)
    assert Record((5, 128), form).nbytes == 5 * 128 / 2 + 7 * (2 + 4) + 3 * 2


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_to_nearest(bits, symmetric):
    """Off by half a step within the range, and what is on the grid stays."""
    form, matrix = Format(bits=bits, group_size=16, symmetric=symmetric, scale_dtype="float32"), torch.randn(6, 48)
    matrix[0] = matrix[0].abs()
    matrix[1] = 0
    scale, zero = grid(matrix, form)
    record = nearest_codes(matrix, scale, zero, form)
    found = record.dequantise()
    half = scale.repeat_interleave(16, 1) / 2
    assert ((found - matrix).abs() <= half * (1.001 if symmetric else 2.001)).all()  # a zero is rounded as well
    assert not found[1].any()
    again = nearest_codes(found, scale, zero, form)
    assert torch.equal(again.unpacked(), record.unpacked())
    assert int(record.unpacked().amax()) < 2**bits


@pytest.mark.parametrize("name", SOME)
def test_eight_bits_change_little_and_reload_bit_equal(name, tmp_path):
    pretrained = bool(zoo.model_info(name).tags)
    model = zoo.create_model(name, pretrained=pretrained).eval()
    count, x = count_parameters(model), inputs(model)
    with torch.no_grad():
        expected = model(x)
        assert zoo.quantize(model, bits=8) is model and not model.training
        found = model(x)
    assert (found - expected).norm() < 0.03 * expected.norm()
    assert count_parameters(model) == count == zoo.model_info(name).num_parameters
    zoo.save_model(model, tmp_path)
    again = zoo.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        assert torch.equal(again(x), found)
    held = again.state_dict()
    assert all(torch.equal(held[key], tensor) for key, tensor in model.state_dict().items())
    assert all(record.codes.dtype == torch.uint8 and record.zero is not None for record in records(again).values())
    info = zoo.model_info(f"local-dir:{tmp_path}")
    assert info.bits_per_weight == 8 * stored_bytes(again) / count
    assert f"| bits a weight | {info.bits_per_weight:.2f} |" in (tmp_path / "README.md").read_text()
    assert again.quantization == model.quantization == {"method": "rtn", **dataclasses.asdict(METHODS["rtn"](bits=8))}


class Allocations(TorchDispatchMode):
    """The most numbers that floating tensors with memory hold at a time, of those that operations make."""

    def __init__(self):
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.is_floating_point() and not found.is_meta and not func.is_view:
            self.made.append(weakref.ref(found))
            self.most = max(self.most, sum(t.numel() for t in (made() for made in self.made) if t is not None))
        return found


@pytest.mark.parametrize("name", ["transformer_nano", "moe_nano", "vovnet_nano"])
def test_loading_makes_no_float_copy(name, tmp_path):
    """No more than one matrix exists as numbers at a time, where its layer is built and the record takes its place."""
    model = zoo.quantize(zoo.create_model(name))
    sizes = [record.shape.numel() for record in set(records(model).values())]
    zoo.save_model(model, tmp_path)
    with Allocations() as seen:
        again = zoo.create_model(f"local-dir:{tmp_path}")
    buffers = sum(buffer.numel() for buffer in again.buffers())
    assert 0 < seen.most <= max(sizes) + 2 * buffers + 1000 < sum(sizes)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "int"])
def test_every_layout_saves_and_reloads_bit_equal(layout, tmp_path):
    model = zoo.quantize(zoo.create_model("transformer_nano").eval(), layout=layout)
    with torch.no_grad():
        expected = model(inputs(model))
        again = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
        assert torch.equal(again(inputs(model)), expected)
    held = records(again)
    assert {record.format.layout for record in held.values()} == {layout}
    assert all(record.nbytes == record.format.nbytes(record.shape) for record in held.values())


@pytest.mark.parametrize(("name", "options"), [
    ("transformer_nano", {"bits": 8, "activation_bits": 8}), ("moe_nano", {"bits": 8, "activation_bits": 8}),
    ("vit_nano", {"layout": "bipolar", "bits": 8, "activation_bits": 8}),
    ("vovnet_nano", {"layout": "e4m3", "group_rows": 2}),
])  # fmt: skip
def test_formats_of_a_whole_model(name, options, tmp_path):
    """Near the float model, saved with what was asked for; a convolution has no tokens to round."""
    model = zoo.create_model(name, pretrained=bool(zoo.model_info(name).tags)).eval()
    x = inputs(model)
    with torch.no_grad():
        expected = model(x)
        found = zoo.quantize(model, **options)(x)
        assert (found - expected).norm() < 0.2 * expected.norm()
        again = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
        assert torch.equal(again(x), found)
    for key, record in records(again).items():
        conv = "patch_embed" in key or (name == "vovnet_nano" and "head" not in key)
        wanted = options | ({"activation_bits": None} if conv else {})
        assert all(getattr(record.format, option) == value for option, value in wanted.items()), key


def test_a_call_that_goes_on_makes_the_same_records(tmp_path):
    models = (zoo.create_model("transformer_nano", pretrained=True) for _ in range(2))
    first, again = (zoo.quantize(model, folder=tmp_path) for model in models)
    held = again.state_dict()
    assert all(torch.equal(held[key], t) for key, t in first.state_dict().items() if ".codes" in key)
    assert {r.format for r in records(again).values()} == {r.format for r in records(first).values()}


def test_a_compressed_model_is_not_fused():
    model = zoo.quantize(zoo.create_model("vovnet_nano"))
    with pytest.raises(ValueError, match=r"fuse\(\) multiplies weights by scales, and .* is compressed"):
        model.fuse()


def test_what_is_compressed_and_what_is_not():
    model = zoo.create_model("moe_nano", tie_embeddings=True)
    zoo.quantize(model, bits=3)
    held = records(model)
    assert held["head.weight"] is held["embedding.weight"]
    assert {"blocks.0.mlp.w1", "blocks.0.mlp.w2", "blocks.0.mlp.w3", "blocks.0.mixer.q_proj.weight"} <= set(held)
    assert type(model.blocks[0].mlp.router) is not nn.Linear or "blocks.0.mlp.router.weight" not in held
    plain = [name for name, p in model.named_parameters() if p.dtype == torch.float32]
    assert plain and all("norm" in name or "router" in name for name in plain)


def test_steps_agree_with_the_whole_and_adapters_learn():
    model = zoo.quantize(zoo.create_model("mamba2_nano"), bits=4)
    x = inputs(model)
    with torch.no_grad():
        state, whole = model.init_state(2), model(x)
        steps = torch.cat([model(part, state) for part in x.split([7, 1, 1, 7], 1)], 1)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)
    model.requires_grad_(False).blocks[0].norm.requires_grad_(True)
    model(x, labels=x).backward()
    assert model.blocks[0].norm.weight.grad.any()  # through the records behind it


def test_dtypes_of_a_compressed_model(tmp_path):
    """Casts leave the records, and a file of bfloat16 is no reason to compute in it."""
    model = zoo.quantize(zoo.create_model("mamba2_nano"), bits=4)
    zoo.save_model(model, tmp_path)
    for dtype, expected in ((None, torch.float32), ("auto", torch.float32), (torch.bfloat16, torch.bfloat16)):
        loaded = zoo.create_model(f"local-dir:{tmp_path}", dtype=dtype).eval()
        assert all(record.scale.dtype == torch.bfloat16 for record in records(loaded).values())
        with torch.no_grad():
            assert loaded(inputs(loaded)).dtype == loaded.embedding(torch.zeros(1, dtype=torch.int64)).dtype == expected
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(inputs(model)).dtype == zoo.create_model("mamba2_nano")(inputs(model)).dtype


def test_skipped_weights_stay_and_a_mixture_reloads(tmp_path):
    model = zoo.create_model("transformer_nano", tie_embeddings=False)
    zoo.quantize(model, bits=4, skip=("blocks.0.*", "head.weight"), embeddings=False)
    assert not {"blocks.0.mlp.w1.weight", "head.weight", "embedding.weight"} & set(records(model))
    assert "blocks.1.mlp.w1.weight" in records(model)
    zoo.save_model(model, tmp_path)
    again = zoo.create_model(f"local-dir:{tmp_path}")
    assert set(records(again)) == set(records(model)) and type(again.head) is nn.Linear


def test_the_command(tmp_path, capsys):
    assert main(["quantize", "transformer_nano", str(tmp_path / "out"), "--bits", "4", "--group-size", "16"]) == 0
    assert "bits a weight, by rtn" in capsys.readouterr().out
    assert zoo.create_model(f"local-dir:{tmp_path / 'out'}").quantization["group_size"] == 16
    assert main(["quantize", str(tmp_path / "out"), str(tmp_path / "again")]) == 2
    assert "compressed already" in capsys.readouterr().err
    assert main(["quantize", "transformer_nano", str(tmp_path / "no"), "--option", "alpha=1"]) == 2
    assert "rtn has no option 'alpha'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds compressed weights, which go into no other layout"):
        zoo.convert(tmp_path / "out", tmp_path / "converted")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": 9}, ValueError, r"bits must be an integer in \[1, 8\], got 9"),
        ({"bits": 0}, ValueError, r"bits must be an integer in \[1, 8\], got 0"),
        ({"group_size": 48}, ValueError, r"embedding\.weight: group_size must divide .* 48 for .* inputs.*more layers"),
        ({"group_size": 0}, ValueError, "group_size must be a positive integer or None"),
        ({"scale_dtype": "float16"}, ValueError, "scale_dtype must be one of"),
        ({"method": "rtm"}, ValueError, "unknown method 'rtm', did you mean 'rtn'"),
        ({"layout": "int5"}, ValueError, "layout must be one of"),
        ({"layout": "e2m1", "bits": 8}, ValueError, "layout 'e2m1' has 4 bits, got bits 8"),
        ({"group": 32}, TypeError, "rtn has no option 'group'"),
        ({"method": "smoothquant_plus"}, ValueError, "smoothquant_plus needs calibration="),
        ({"skip": "blocks.9.*"}, ValueError, "skip names no weight by 'blocks.9"),
        ({"skip": "*"}, ValueError, "there is nothing to compress"),
    ],
)
def test_what_is_refused(options, error, message):
    model = zoo.create_model("transformer_nano")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(error, match=message):
        zoo.quantize(model, **options)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_pattern_for_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="skip names no weight by 'head'; there is none"):
        zoo.quantize(torch.nn.ReLU(), skip="head")


def test_calibration_of_the_wrong_vocabulary():
    model = zoo.create_model("transformer_nano")
    with pytest.raises(ValueError, match="calibration holds token 256, the model has 256"):
        zoo.quantize(model, "smoothquant_plus", calibration=Calibration([torch.full((1, 4), 256)]))
    with pytest.raises(ValueError, match="at least one batch"):
        Calibration([])


def test_records_are_not_trained():
    model = zoo.create_model("transformer_nano")
    check_trainable(model)
    zoo.quantize(model)
    with pytest.raises(ValueError, match="weights are compressed, and frozen: train the float model before"):
        check_trainable(model)
    model.requires_grad_(False)
    model.blocks[0].norm.requires_grad_(True)
    check_trainable(model)


def test_a_damaged_description_is_an_error(tmp_path):
    zoo.save_model(zoo.quantize(zoo.create_model("transformer_nano")), tmp_path)
    file: Path = tmp_path / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"bits": 4', '"bits": 11'))
    with pytest.raises(ValueError, match=r"describes no compressed weights.*bits must be an integer"):
        zoo.create_model(f"local-dir:{tmp_path}")
    file.write_text(text.replace('"bits": 4', '"bits": 5'))
    with pytest.raises(ValueError, match="does not fit the model"):
        zoo.create_model(f"local-dir:{tmp_path}")


def test_all_that_may_be_compressed_is_a_matrix():
    for name in ("vim_nano", "m3vit_nano", "zamba2_nano", "shvit_nano", "revunet3d_nano"):
        model = zoo.create_model(name)
        shapes = {key: (matrices(model, key).shape, weight.numel()) for key, weight in compressible(model).items()}
        assert all(len(shape) in (2, 3) and shape.numel() == numel for shape, numel in shapes.values())

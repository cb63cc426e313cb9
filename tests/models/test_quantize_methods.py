"""Every method of compression: the same call goes on where it broke off, and helps a text that it has not seen."""

from __future__ import annotations

import copy
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.cli import main
from zoo.layers.quant import records
from zoo.layers.step import programmed
from zoo.quantize import METHODS, Calibration
from zoo.quantize.store import SIGNATURE

QUICK: dict[str, dict[str, Any]] = {
    "smoothquant_plus": {"steps": 2}, "omniquant": {"epochs": 1}, "easyquant": {"steps": 5}, "lowbit_fp": {"steps": 3},
    "dgq": {"activation_bits": 8}, "db_llm": {"epochs": 1}, "topkld": {"epochs": 1},
    "d2moe": {"epochs": 1}, "q_diffusion": {"steps": 1, "activation_bits": 8},
    "vidit_q": {"steps": 1, "activation_bits": 8}, "mixdq": {"activation_bits": 8},
}  # fmt: skip
OF_IMAGES = ("q_diffusion", "vidit_q", "mixdq")  # methods of diffusion models


def text(name: str, rows: int = 4) -> Tensor:
    """A document of Python's, its first bytes."""
    return torch.tensor(list(topics[name].encode()[: 128 * rows])).view(rows, 128)


def calibration(model: Any) -> Calibration:
    if hasattr(model.config, "vocab_size"):
        return Calibration(text("compound").split(2))
    if hasattr(model, "guided"):
        return Calibration.of_samples(model, count=4, steps=3)
    generator = torch.Generator().manual_seed(0)
    return Calibration([torch.randn(2, model.config.in_chans, *model.config.image_shape, generator=generator)])


@torch.no_grad()
def loss(model: Any) -> float:
    """On another document."""
    unseen = text("specialnames", 16)
    return model(unseen, labels=unseen).item()


@pytest.fixture(scope="module")
def trained() -> Any:
    return zoo.create_model("transformer_nano", pretrained=True).eval()


class Broken(Exception):
    pass


def breaks(pieces: int):
    """A progress that ends a call after so many pieces."""

    def progress(done: int, total: int) -> None:
        assert 1 <= done <= total
        if done == pieces:
            raise Broken

    return progress


def small_model(method: str) -> Any:
    """One that the method takes."""
    if method in OF_IMAGES:
        model = zoo.create_model("dit_nano", dim=16, num_heads=2, depth=1)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()
    kind, sizes = ("moe_nano", {"num_experts": 3}) if method == "d2moe" else ("transformer_nano", {})
    return zoo.create_model(kind, dim=32, num_heads=2, num_kv_heads=1, mlp_dim=32, depth=2, **sizes).eval()


@pytest.mark.parametrize("method", list(METHODS))
def test_a_call_that_broke_off_goes_on_to_the_same_bytes(method, tmp_path):
    small = small_model(method)
    call = {"method": method, "calibration": calibration(small), **QUICK.get(method, {})}
    expected = zoo.quantize(copy.deepcopy(small), **call).state_dict()
    for pieces in (1, 4):
        with pytest.raises(Broken):
            zoo.quantize(copy.deepcopy(small), folder=tmp_path, progress=breaks(pieces), **call)
    seen: list[tuple[int, int]] = []
    again = zoo.quantize(copy.deepcopy(small), folder=tmp_path, progress=lambda *now: seen.append(now), **call)
    found = again.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(("method", "name"), [
    ("omniquant", "moe_nano"), ("omniquant", "falcon_h1_nano"), ("omniquant", "vovnet_nano"), ("easyquant", "moe_nano"),
    ("baq", "vovnet_nano"), ("lowbit_fp", "moe_nano"), ("lowbit_fp", "vovnet_nano"), ("smoothquant_plus", "moe_nano"),
    ("dgq", "moe_nano"), ("dgq", "vovnet_nano"), ("db_llm", "falcon_h1_nano"), ("db_llm", "vovnet_nano"),
    ("topkld", "moe_nano"), ("topkld", "vovnet_nano"), ("sketch", "moe_nano"),
])  # fmt: skip
def test_experts_recurrences_and_convolutions(method, name, tmp_path):
    """Are compressed, keep their float parameters, and reload bit-equal."""
    model = zoo.create_model(name, pretrained=True).eval()
    seen = calibration(model)
    held = {key for key, p in model.named_parameters() if p.dim() == 1 or "A_log" in key}
    zoo.quantize(model, method, calibration=seen, **QUICK.get(method, {}))
    kept = dict(model.named_parameters())
    assert records(model) and all(kept[key].dtype == torch.float32 for key in held)
    zoo.save_model(model, tmp_path)
    again = zoo.create_model(f"local-dir:{tmp_path}").eval()
    with torch.no_grad():
        assert torch.equal(again(seen.batches[0]), model(seen.batches[0]))


@pytest.mark.parametrize(("method", "options"), [
    ("omniquant", {"bits": 2, "epochs": 4}), ("easyquant", {"bits": 3, "group_size": 4096}), ("baq", {"bits": 3}),
    ("lowbit_fp", {"bits": 3, "steps": 60}), ("lowbit_fp", {"layout": "e2m1", "steps": 0}), ("dgq", {"bits": 3}),
    ("db_llm", {"bits": 2, "epochs": 3}), ("topkld", {"bits": 2, "epochs": 3, "lr": 1e-3}),
    ("sketch", {"bits": 3, "group_size": 4096}),
])  # fmt: skip
def test_it_predicts_an_unseen_text_better_than_plain_rounding(method, options, trained):
    plain = {key: value for key, value in options.items() if key in ("bits", "layout", "group_size")}
    plain |= {"layout": "dual_binary"} if method == "db_llm" else {}
    found, rounded = copy.deepcopy(trained), zoo.quantize(copy.deepcopy(trained), **plain)
    zoo.quantize(found, method, calibration=Calibration(text("compound", 8).split(4)), **options)
    assert loss(found) < loss(rounded)


@pytest.mark.parametrize(("method", "options"), [
    ("rtn", {"layout": "e2m1"}), ("rtn", {"bits": 8, "activation_bits": 8}), ("rtn", {"group_rows": 2}),
    ("easyquant", {"deviations": 2.0}), ("dgq", {}),
])  # fmt: skip
@torch.no_grad()
def test_steps_of_any_record_are_the_whole(method, options, trained):
    """Also where a step of plain integers is one program."""
    model: Any = zoo.quantize(copy.deepcopy(trained), method, calibration=calibration(trained), **options)
    x = text("import", 1)[:, :10]
    state = model.init_state(1, max_length=16)
    with programmed(model):
        steps = torch.cat([model(part, state) for part in x.split([4, *[1] * 6], 1)], 1)
    torch.testing.assert_close(steps, model(x), rtol=1e-4, atol=1e-4)


def test_a_folder_is_for_one_model_and_one_calibration(trained, tmp_path):
    call = {"method": "baq", "folder": tmp_path}
    zoo.quantize(copy.deepcopy(trained), calibration=calibration(trained), **call)
    with pytest.raises(ValueError, match="call of another calibration found: give it a folder"):
        zoo.quantize(copy.deepcopy(trained), calibration=Calibration([text("while")]), **call)
    with pytest.raises(ValueError, match="call of another model found: give it a folder"):
        zoo.quantize(zoo.create_model("transformer_nano"), calibration=calibration(trained), **call)
    (tmp_path / SIGNATURE).write_text('{"method": "ba')
    with pytest.raises(ValueError, match=r"quantization\.json is damaged, so that nobody knows whose pieces"):
        zoo.quantize(copy.deepcopy(trained), calibration=calibration(trained), **call)


@pytest.mark.parametrize(("method", "options", "message"), [
    ("omniquant", {"epochs": -1}, "epochs must be at least 0 and rates above 0"),
    ("easyquant", {"deviations": -1.0}, "deviations and steps must be at least 0"),
    ("easyquant", {"group_rows": 2}, "easyquant finds a scale for each row"),
    ("baq", {"budget": 9.0}, r"budget must lie in \[1, 8\] bits"),
    ("dgq", {"outlying": 2.0}, "outlying must be a share of the channels"),
    ("db_llm", {"bits": 3}, "layout 'dual_binary' has 2 bits, got bits 3"),
    ("db_llm", {"epochs": -1}, "epochs and deviation must be at least 0"),
    ("topkld", {"epochs": -1}, "epochs must be at least 0 and lr above 0"),
    ("topkld", {"tail": "both"}, "tail must be one of"),
    ("lowbit_fp", {"lr": 0.0}, "steps must be at least 0 and lr above 0"),
    ("lowbit_fp", {"any_split": True}, "any_split is of floating-point layouts"),
    ("lowbit_fp", {"layout": "bipolar"}, "lowbit_fp rounds to integers and floating-point numbers"),
])  # fmt: skip
def test_what_is_refused(method, options, message, trained):
    with pytest.raises(ValueError, match=message):
        zoo.quantize(trained, method, calibration=calibration(trained), **options)
    assert not records(trained)


def test_a_folder_of_images_calibrates_the_command(tmp_path, capsys):
    """Prepared as the model has it, and the same as in memory."""
    from PIL import Image

    pixels = torch.randint(0, 256, (5, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "images" / "more").mkdir(parents=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / "images" / ("more" if index > 2 else ".") / f"{index}.png")
    call = ["quantize", "vit_nano", str(tmp_path / "out"), "--method", "lowbit_fp", "--option", "steps=2"]
    assert main([*call, "--calibration", str(tmp_path / "images")]) == 0
    found: Any = zoo.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    model: Any = zoo.create_model("vit_nano", pretrained=True).eval()
    seen = Calibration.of_images(model, tmp_path / "images", batch_size=3)
    assert [len(batch) for batch in seen.batches] == [3, 2] and len(
        Calibration.of_images(model, tmp_path, count=2).batches[0]
    ) == 2
    zoo.quantize(model, "lowbit_fp", steps=2, calibration=Calibration.of_images(model, tmp_path / "images"))
    with torch.no_grad():
        assert torch.equal(found(seen.batches[0]), model(seen.batches[0]))
    (tmp_path / "empty").mkdir()
    assert main([*call, "--calibration", str(tmp_path / "empty")]) == 2
    assert "holds no image" in capsys.readouterr().err
    with pytest.raises(ValueError, match="takes no images: calibrate it with a text"):
        Calibration.of_images(zoo.create_model("transformer_nano"), tmp_path)

"""ONNX files, run by onnxruntime on images that were not there at the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.cli import main
from zoo.export.operators import _selective_scan
from zoo.kernels import selective_scan

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
WITHOUT_COMPLEX_NUMBERS = [n for n in zoo.list_models("*_nano", task="image-classification") if "_pixel_" not in n]


def randomised(name: str, **options: Any) -> Any:
    """Statistics and closed branches at random, so that nothing is exported as if it were not there."""
    model: Any = zoo.create_model(name, **options)
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dim() == 1:
            nn.init.uniform_(tensor, 0.5 if "var" in key else -0.5, 1.0)
    return model.eval()


def run(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "shvit_nano")) for n in WITHOUT_COMPLEX_NUMBERS]
)
def test_the_file_computes_what_the_model_does(name, tmp_path):
    model = randomised(name, **({"depth": 2} if name == "vim_nano" else {}))
    images = torch.randn(5, model.config.in_chans, *model.config.image_shape)
    path = zoo.export_onnx(model, tmp_path / "model.onnx")
    torch.testing.assert_close(run(path, images), model(images), atol=1e-5, rtol=1e-4)


def test_fused_at_a_fixed_batch(tmp_path):
    model = randomised("shvit_nano")
    images = torch.randn(3, 1, 8, 8)
    path = zoo.export_onnx(model.fuse(), tmp_path / "model.onnx", fixed_batch=3)
    torch.testing.assert_close(run(path, images), model(images), atol=1e-5, rtol=1e-4)
    with pytest.raises(Exception, match=r"[Ee]xpected"):
        run(path, images[:2])


@pytest.mark.parametrize("length", [1, 7, 16])
def test_the_associative_scan_is_the_recurrence(length):
    generator = torch.Generator().manual_seed(length)
    x, dt, z = (torch.randn(2, length, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    A = -torch.rand(6, 4, generator=generator, dtype=torch.float64)
    B, C = (torch.randn(2, length, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    D, bias, state = torch.ones(6).double(), torch.ones(6).double(), torch.randn(2, 6, 4, dtype=torch.float64)
    expected = selective_scan(
        x, dt, A, B, C, D=D, z=z, dt_bias=bias, dt_softplus=True, initial_state=state, impl="reference"
    )
    found = _selective_scan(x, dt, A, B, C, D, z, bias, state, None, True, "auto")
    torch.testing.assert_close(found, tuple(expected))


def test_command(tmp_path, capsys):
    zoo.save_model(randomised("simplenet_nano"), tmp_path / "model")
    path = tmp_path / "model.onnx"
    assert main(["export", str(tmp_path / "model"), str(path), "--fuse"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {path}"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["model.onnx"]
    images = torch.randn(4, 1, 8, 8)
    expected = zoo.create_model(f"local-dir:{tmp_path / 'model'}").eval()(images)
    torch.testing.assert_close(run(path, images), expected, atol=1e-5, rtol=1e-4)


def test_weights_beside_the_file_only_where_they_must_be(tmp_path, monkeypatch, capsys):
    zoo.save_model(randomised("simplenet_nano"), tmp_path / "model")
    path, images = tmp_path / "model.onnx", torch.randn(4, 1, 8, 8)
    expected = zoo.create_model(f"local-dir:{tmp_path / 'model'}").eval()(images)
    for largest, names in ((0, ["model.onnx", "model.onnx.data"]), (2**30, ["model.onnx"])):
        monkeypatch.setattr("zoo.export.LARGEST", largest)
        assert main(["export", str(tmp_path / "model"), str(path)]) == 0
        assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == names
        assert ("model.onnx.data" in capsys.readouterr().out) == (len(names) == 2)
        torch.testing.assert_close(run(path, images), expected, atol=1e-5, rtol=1e-4)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="only language models and vision models can be exported, got Linear"):
        zoo.export_onnx(nn.Linear(2, 2), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="a fixed batch one of a vision model, got Mamba"):
        zoo.export_onnx(zoo.create_model("mamba_nano"), tmp_path / "model.onnx", fixed_batch=2)
    with pytest.raises(ValueError, match="s4_pixel_nano computes with complex numbers, which ONNX has not"):
        zoo.export_onnx(zoo.create_model("s4_pixel_nano", depth=1), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())

"""Images of every kind through the doors by which files come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.images import ImageError, open_image
from zoo.train.data import ImageDataModule

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
EXIF_ORIENTATION, QUARTER_TURN = 0x0112, 6


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that are no whole images, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("bad")
    files = {name: folder / f"{name}.png" for name in ("text", "truncated", "floats", "huge")}
    files["text"].write_text("no image")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(files["truncated"])
    files["truncated"].write_bytes(files["truncated"].read_bytes()[:2000])
    files["floats"] = folder / "floats.tiff"
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(files["floats"])
    Image.new("1", (20_000, 10_000)).save(files["huge"])
    return files


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_sixteen_bits_are_scaled(suffix, mode, tmp_path):
    path = tmp_path / f"wide.{suffix}"
    Image.fromarray(GREY.astype(np.uint16) * 257 + 100).save(path)
    found = np.asarray(open_image(path, mode))
    assert found.dtype == np.uint8 and np.array_equal(found if mode == "L" else found[..., 0], GREY)
    Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16)).save(path)
    assert np.asarray(open_image(path, mode)).min() == 255


@pytest.mark.parametrize("kind", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "1"])
def test_other_kinds_are_pils_conversion(kind, tmp_path):
    image = Image.fromarray(np.stack([GREY, GREY.T, GREY], axis=-1)).convert(kind)
    path = tmp_path / ("image.tiff" if kind == "CMYK" else "image.png")
    image.save(path)
    for mode in ("L", "RGB"):
        assert np.array_equal(np.asarray(open_image(path, mode)), np.asarray(image.convert(mode)))


def test_orientation_is_an_option(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN
    Image.fromarray(GREY[:4]).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "turned.png", "L")), GREY[:4])
    turned = np.asarray(open_image(tmp_path / "turned.png", "L", exif_orientation=True))
    assert np.array_equal(turned, np.rot90(GREY[:4], -1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", r"text\.png is not an image that PIL can read"),
        ("truncated", r"truncated\.png cannot be read: .*truncated"),
        ("floats", r"floats\.tiff cannot be read: its numbers \(PIL's mode 'F'\) are no 8- or 16-bit grey"),
        (
            "huge",
            r"huge\.png: Image size \(200000000 pixels\).*; shrink it first, or raise PIL\.Image\.MAX_IMAGE_PIXELS",
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_files_name(kind, message, bad, capsys):
    model = zoo.create_model("lightcnn_nano")
    for read in (lambda: open_image(bad[kind]), lambda: zoo.predict(model, [bad[kind]])):
        with pytest.raises(ImageError, match=message):
            read()
    assert main(["predict", "lightcnn_nano", str(bad[kind])]) == 2
    assert bad[kind].name in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        open_image("missing.png")


def test_bad_images_are_skipped_where_asked(bad, tmp_path):
    Image.fromarray(GREY).save(tmp_path / "good.png")
    model = zoo.create_model("lightcnn_nano")
    paths = [bad["text"], tmp_path / "good.png", bad["truncated"]]
    with pytest.warns(UserWarning, match=r"skipped: .*\.png") as warned:
        found = zoo.predict(model, paths, skip_bad_images=True)
    assert [bool(classes) for classes in found] == [False, True, False] and len(warned) == 2
    assert found[1:2] == zoo.predict(model, [tmp_path / "good.png"])


def test_one_path_is_one_image(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    model = zoo.create_model("lightcnn_nano")
    expected = zoo.predict(model, [tmp_path / "a.png"])
    assert zoo.predict(model, str(tmp_path / "a.png")) == zoo.predict(model, tmp_path / "a.png") == expected
    with pytest.raises(FileNotFoundError, match=r"'none\.png'"):
        zoo.predict(model, "none.png")


@pytest.mark.parametrize("text", ['["one", "two"]', '{"0": "one", "1": "two"}', "one\ntwo\n"])
def test_labels_may_begin_with_a_mark(text, tmp_path):
    (tmp_path / "labels").write_text(text, encoding="utf-8-sig")
    assert zoo.read_labels(tmp_path / "labels", 2) == ["one", "two"]


def test_predictions_of_images_that_are_not_square(tmp_path):
    """As the tensor itself, prepared by hand."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    model: Any = zoo.create_model("shvit_nano", img_size=(8, 16), in_chans=3, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    images = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = model(images).softmax(-1)[0]
    (((best, probability), *_),) = zoo.predict(model, tmp_path / "wide.png")
    assert best == expected.argmax() and probability == pytest.approx(expected.max().item(), abs=1e-5)


@pytest.fixture
def folder(bad: dict[str, Path], tmp_path: Path) -> Path:
    """Three good images, the first of 16 bits and the second turned, and two bad ones, as root/val/<class>/<image>."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = QUARTER_TURN
    for label in ("a", "b"):
        (tmp_path / "val" / label).mkdir(parents=True)
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "val/a/0.png")
    Image.fromarray(GREY).save(tmp_path / "val/a/1.png", exif=exif)
    Image.fromarray(GREY).save(tmp_path / "val/b/2.png")
    for name in ("text", "truncated"):
        (tmp_path / f"val/b/{name}.png").write_bytes(bad[name].read_bytes())
    return tmp_path


def data_of(folder: Path, **options: Any) -> ImageDataModule:
    splits = dict.fromkeys(("train_split", "val_split", "test_split"), "val")
    return ImageDataModule(root=str(folder), in_chans=1, img_size=8, crop_pct=1.0, **splits, **options)


def test_data_read_images_as_predictions_do(folder):
    data = data_of(folder, skip_bad_images=True, exif_orientation=True, mean=(0.0,), std=(1.0,))
    with pytest.warns(UserWarning, match=r"skipped 2 of 5 images that cannot be read: .*text\.png.*truncated\.png"):
        data.setup()
    images, labels = data.sources["test"].fetch(torch.arange(3), 0)
    grey = torch.from_numpy(GREY) / 255
    expected = torch.stack([grey, grey.rot90(-1), grey])[:, None]
    torch.testing.assert_close(images, expected)
    assert labels.tolist() == [0, 0, 1]
    plain = data_of(folder)
    with pytest.raises(ImageError, match=r"text\.png is not an image"):
        plain.setup()
        plain.sources["test"].fetch(torch.arange(5), 0)
    with pytest.raises(ValueError, match="are for folders: CIFAR10 reads its own images"):
        ImageDataModule(dataset="CIFAR10", skip_bad_images=True)


@pytest.mark.filterwarnings("ignore:skipped 2 of 5:UserWarning")
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_scores_of_folders(folder, tmp_path, capsys):
    model = str(zoo.save_model(zoo.create_model("lightcnn_nano", num_classes=2), tmp_path / "model"))
    assert main(["eval", model, "--images", str(folder)]) == 2
    assert "text.png is not an image" in capsys.readouterr().err.replace("\n", "")
    assert main(["eval", model, "--images", str(folder), "--skip-bad-images"]) == 0
    assert "val/acc1" in capsys.readouterr().out


def test_data_are_squashed_where_the_model_says_so(tmp_path):
    (tmp_path / "val/a").mkdir(parents=True)
    pixels = np.zeros((40, 120, 3), dtype=np.uint8)
    pixels[:, :40] = 255
    Image.fromarray(pixels).save(tmp_path / "val/a/wide.png")
    model: Any = zoo.create_model("mcunet_vww1", device="meta")
    splits = dict.fromkeys(("train_split", "val_split", "test_split"), "val")
    data = ImageDataModule(root=str(tmp_path), pretrained_cfg=model.pretrained_cfg, **splits)
    data.setup()
    ((image,), _) = data.sources["test"].fetch(torch.arange(1), 0)
    assert image.shape == (3, 80, 80) and (image[:, :, :20] > 0.9).all() and (image[:, :, 40:] < -0.9).all()
    assert data.preparation["crop_mode"] == "squash"


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_images_that_are_not_square_are_scored_as_they_are(tmp_path, capsys):
    """The same image in both classes: one of the two is right."""
    wide: dict[str, Any] = {"img_size": (8, 16), "in_chans": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    model = zoo.create_model("shvit_nano", num_classes=2, **wide)
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    for label in ("0", "1"):
        (tmp_path / "val" / label).mkdir(parents=True)
        Image.fromarray(noise).save(tmp_path / "val" / label / "noise.png")
    data = ImageDataModule(root=str(tmp_path), train_split="val", pretrained_cfg=model.pretrained_cfg)  # type: ignore[arg-type]
    assert data.input["input_size"] == (3, 8, 16)
    folder = zoo.save_model(model, tmp_path / "model")
    assert main(["eval", str(folder), "--images", str(tmp_path)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "val/acc1" in line]
    assert "0.5" in rows[0]


def test_labels_that_are_no_text_are_said_with_the_files_name(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"labels\.txt must be text in UTF-8"):
        zoo.read_labels(tmp_path / "labels.txt", 2)

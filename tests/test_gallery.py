"""Pictures of what the miniatures make: drawn by a command that is typed, and shown on the page of their family."""

import json
import shlex
from base64 import b64encode
from pathlib import Path

import pytest
from PIL import Image

from zoo.benchmarks import gallery
from zoo.benchmarks.common import SCHEMA
from zoo.benchmarks.report.families import families
from zoo.benchmarks.report.models import rows
from zoo.benchmarks.report.results import Results
from zoo.cli.options import model_names

RESULTS = Path(gallery.__file__).parent / "results"


def test_a_picture_is_drawn_by_the_command_that_is_told(tmp_path):
    model = "stack_vae_nano"
    command = gallery.draw(model, gallery.PICTURES[model], tmp_path / "new" / "drawn.png")
    assert command == f"zoo predict {model} series.npy --output {model}.png"
    with Image.open(tmp_path / "new" / "drawn.png") as image:
        assert min(image.size) > 50
        assert len(image.convert("L").getcolors() or range(1000)) > 10


def test_what_is_typed_besides_names_of_files_can_be_typed_again(tmp_path):
    """Texts with spaces in quotation marks, in front of the options."""
    model = "m2_encoder_nano"
    drawn = gallery.PICTURES[model]
    typed = shlex.split(drawn.typed(model, drawn.files(tmp_path), "made.png"))
    assert typed[:3] == ["zoo", "predict", model] and typed[-4:] == ["--top-k", "3", "--output", "made.png"]
    assert all((tmp_path / name).exists() for name in typed[3:7]) and typed[7:-4:2] == ["--text"] * 4
    assert all(" at " in text for text in typed[8:-4:2])


def test_what_cannot_be_drawn_is_one_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"zoo generate unet_nan.*unknown model"):
        gallery.draw("unet_nan", gallery.Drawn("nothing", "generate"), tmp_path / "drawn.png")
    assert not (tmp_path / "drawn.png").exists()


def test_the_page_of_a_family_shows_its_picture(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "drawn.png")
    (tmp_path / "gallery").mkdir()
    (tmp_path / "drawn.png").rename(tmp_path / "gallery" / "unet_nano.png")
    told = {"name": "unet_nano", "family": "unet", "shows": "noise", "command": "zoo generate unet_nano"}
    gone = told | {"name": "unet_small"}  # without a file
    (tmp_path / "gallery.json").write_text(json.dumps({"schema": SCHEMA, "pictures": [told, gone]}))
    results = Results(tmp_path)
    (found,) = families(rows(results, "unet_nano"), {}, results, [])
    expected = b64encode((tmp_path / "gallery" / "unet_nano.png").read_bytes()).decode()
    assert found.pictures == [(f"data:image/png;base64,{expected}", "noise", "zoo generate unet_nano")]


def test_pictures_in_the_results_are_those_that_are_declared():
    told = {record["name"] for record in json.loads((RESULTS / "gallery.json").read_text())["pictures"]}
    assert told == set(gallery.PICTURES) <= set(model_names())
    assert told == {path.stem for path in (RESULTS / "gallery").glob("*.png")}

"""What is wrong with a call of ``zoo.quantize`` is one error, from Python and on the command line; and a model that is
scored on what it was calibrated on says so."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import zoo
from zoo.cli import main
from zoo.quantize import Calibration
from zoo.quantize.seen import SEEN, fingerprint, share_seen
from zoo.quantize.seen import _numbers as numbers
from zoo.text import ByteTokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
]
SMALL = {"dim": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32, "depth": 1}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("texts")
    files = {name: folder / f"{name}.txt" for name in ("compound", "specialnames", "bytes_alone")}
    for name, file in files.items():
        file.write_bytes(topics[name].encode()[:3000] if name in topics else b"\xff\xfe\x00\x80" * 99)
    return files


@pytest.mark.parametrize(("options", "message"), [
    (["--bits", "9"], "bits must be an integer in [1, 8], got 9"),
    (["--bits", "0"], "bits must be an integer in [1, 8], got 0"),
    (["--group-size", "48"], "group_size must divide the inputs of a layer, got group_size 48"),
    (["--layout", "e2m1", "--bits", "8"], "layout 'e2m1' has 4 bits, got bits 8"),
    (["--method", "rtm"], "unknown method 'rtm', did you mean 'rtn'"),
    (["--method", "baq"], "baq needs calibration="),
    (["--method", "baq", "--calibration", "compound.no"], "No such file"),
    (["--method", "baq", "--calibration", "bytes_alone"], "must be text in UTF-8"),
    (["--option", "alpha"], "option must be NAME=VALUE"),
])  # fmt: skip
def test_the_command_says_what_is_wrong_in_a_line(options, message, texts, tmp_path, capsys):
    given = [str(texts[word]) if word in texts else word for word in options]
    assert main(["quantize", "transformer_nano", str(tmp_path / "out"), *given]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and not (tmp_path / "out").exists()


def test_a_text_for_a_model_of_images_and_the_other_way_round(texts, tmp_path, capsys):
    command = ["quantize", "vit_nano", str(tmp_path / "out"), "--method", "baq", "--calibration"]
    assert main([*command, str(texts["compound"])]) == 2
    assert "takes images: --calibration must be a folder of them" in capsys.readouterr().err
    assert main([command[0], "transformer_nano", *command[2:], str(tmp_path)]) == 2
    assert "takes no images: calibrate it with a text" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "given", "message"), [
    ("transformer_nano", torch.tensor([[3, -1]]), "calibration holds token -1, the model has 256"),
    ("transformer_nano", torch.tensor([[3, 256]]), "calibration holds token 256, the model has 256"),
    ("transformer_nano", torch.zeros(1, 3, 8, 8), "calibration holds images, .* takes tokens"),
    ("vit_nano", torch.tensor([[3, 5]]), "calibration holds tokens, .* takes images"),
])  # fmt: skip
def test_a_calibration_of_another_model(name, given, message):
    with pytest.raises(ValueError, match=message):
        zoo.quantize(zoo.create_model(name), "baq", calibration=Calibration([given]))


def test_a_calibration_by_the_tokenizer_of_another_model():
    """Bytes are within any vocabulary, and still another one's."""
    model = zoo.create_model("transformer_nano", vocab_size=1000, **SMALL)
    seen = Calibration.of_text(ByteTokenizer(), topics["compound"], count=1)
    with pytest.raises(ValueError, match="tokenizer of 256 tokens and the model knows 1,000: they do not belong"):
        zoo.quantize(model, "baq", calibration=seen)


def test_what_is_no_number():
    with pytest.raises(ValueError, match="calibration holds infinities or what is no number"):
        Calibration([torch.full((1, 3, 8, 8), torch.nan)])
    model = zoo.create_model("transformer_nano", **SMALL)
    with torch.no_grad():
        model.blocks[0].mlp.w1.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.w1\.weight holds infinities"):
        zoo.quantize(model)
    with pytest.raises(ValueError, match="bits must be an integer"):
        zoo.quantize(model, bits=True)


def test_training_a_compressed_model_is_a_line(tmp_path, capsys):
    zoo.save_model(zoo.quantize(zoo.create_model("vit_nano")), tmp_path / "small")
    options = [f"--model.model=local-dir:{tmp_path / 'small'}", "--model.model_args={}", "--trainer.accelerator=cpu"]
    options += ["--trainer.max_steps=1", "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false"]
    assert main(["train", "digits_vit_nano", "--output", str(tmp_path / "run"), *options]) == 2
    assert "are compressed, and frozen: train the float model before" in capsys.readouterr().err


@pytest.fixture(scope="module")
def calibrated() -> Any:
    seen = Calibration.of_text(ByteTokenizer(), topics["compound"], count=32)
    return zoo.quantize(zoo.create_model("transformer_nano", **SMALL).eval(), "sketch", calibration=seen)


def test_scoring_what_was_seen_is_told(calibrated, texts, tmp_path, capsys):
    """Also by the command, of a saved model, and of a part of the text that begins anywhere."""
    tokenizer = ByteTokenizer()
    with pytest.warns(UserWarning, match="is in both: the score is not that of unseen data"):
        zoo.score_text(calibrated, tokenizer, topics["compound"][1003:2200])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo.score_text(calibrated, tokenizer, topics["specialnames"][:3000])
        plain = zoo.quantize(zoo.create_model("transformer_nano", **SMALL))
        zoo.score_text(plain, tokenizer, topics["compound"][:2000])
    zoo.save_model(calibrated, tmp_path / "small")
    again = zoo.create_model(f"local-dir:{tmp_path / 'small'}")
    assert again.quantization == calibrated.quantization and not calibrated._forward_pre_hooks
    with pytest.warns(UserWarning, match="Quantise it with other data"):
        assert main(["eval", str(tmp_path / "small"), "--text", str(texts["compound"])]) == 0


def test_images_that_were_seen_are_told(tmp_path):
    from lightning import Trainer

    from zoo.train.callbacks import HeldOut
    from zoo.train.tasks import ImageClassification

    generator = torch.Generator().manual_seed(0)
    model: Any = zoo.create_model("vit_nano")
    images = [torch.randn(4, model.config.in_chans, *model.config.image_shape, generator=generator) for _ in range(3)]
    seen = Calibration(images[:2])
    zoo.quantize(model, "sketch", calibration=seen)
    labels = torch.zeros(4, dtype=torch.int64)
    trainer: Any = Trainer(
        logger=False, enable_checkpointing=False, callbacks=[HeldOut()], accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    for image, told in ((images[2], False), (images[1], True)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            data = DataLoader([(image, labels)], batch_size=None)  # type: ignore[arg-type]
            trainer.validate(ImageClassification(copy.deepcopy(model)), data, verbose=False)
        assert told == any("of what it was calibrated on" in str(one.message) for one in found)


def test_an_evaluation_that_is_broken_off_leaves_nothing_on_the_model():
    from lightning import LightningModule, Trainer

    from zoo.train.callbacks import HeldOut

    class Broken(LightningModule):
        trained = torch.nn.Linear(2, 2)

        def validation_step(self, batch, batch_idx):
            raise RuntimeError("no memory")

    Broken.trained.quantization = {SEEN: {"every": 1, "numbers": ""}}  # type: ignore[assignment]
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(callbacks=[HeldOut()], accelerator="cpu", enable_model_summary=False, **options)
    with pytest.raises(RuntimeError, match="no memory"):
        trainer.validate(Broken(), DataLoader([torch.zeros(2)]), verbose=False)
    assert not Broken.trained._forward_pre_hooks


def test_the_numbers_of_a_calibration():
    """Few, whatever its size; the same wherever a window begins; other texts have others."""
    generator = torch.Generator().manual_seed(0)
    long, other = (torch.randint(0, 50000, (64, 512), generator=generator) for _ in range(2))
    known = fingerprint([long])
    assert 200 < len(known["numbers"]) // 16 <= 512 and known["every"] >= 32
    assert share_seen(known, numbers(long[7:8, 100:])) == 1.0 and share_seen(known, numbers(other)) == 0.0
    half = torch.cat([other[:32], long[:32]])
    assert 0.4 < share_seen(known, numbers(half)) < 0.6
    short = torch.arange(9)[None]  # less than a window: nothing is known
    assert fingerprint([short])["numbers"] == "" and share_seen(fingerprint([short]), numbers(short)) == 0.0
    assert SEEN not in zoo.quantize(zoo.create_model("transformer_nano", **SMALL)).quantization

"""What models cost: counted by hand, predicted and measured."""

from __future__ import annotations

import copy
import dataclasses
import json
from importlib import import_module

import pytest
import torch

import zoo
from zoo.cli import main
from zoo.layers.step.stepper import Steps
from zoo.profile import peaks as measured_peaks
from zoo.profile.measure import peak_memory
from zoo.profile.metrics import Energy
from zoo.profile.peaks import cache_folder
from zoo.profile.record import Peaks, Profile
from zoo.profile.runtime import STEPS, idealised_runtime
from zoo.profile.trace import Kernel, Trace, waterline

PEAKS = Peaks("cpu", "float32", flops=100.0, bandwidth=10.0)
QUICK = ("mamba2_nano", "transformer_nano", "vit_nano", "simplenet_nano")
# how many steps, tokens or windows there are is decided by values, and counted is the most that may be
DECIDED = ("seqboat_nano", "seqboat_text_nano", "seqboat_pixel_nano", "mod_nano", "mor_nano", "routing_nano",
           "scatterformer_nano")  # fmt: skip
STEPS_DIFFER = (
    "titans_lmm_nano",
    "titans_mac_nano",
    "titans_mag_nano",
    "titans_mal_nano",
)  # as they end a chunk or not
TWO_AT_LEAST = ("efficientvit_nano", "shvit_nano")  # images, for a batch norm of one number a channel
NOT_PREDICTED = {  # rooms that oneDNN takes for filters of one image
    ("efficienttam_nano", 1, "training"), ("revunet3d_nano", 1, "training"), ("pcdarts_nano", 1, "forward"),
}  # fmt: skip
SLACK = 8 << 10  # bytes: a step of decoding of the smallest models has no more


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch):
    """The machine is not measured for these tests."""
    monkeypatch.setattr(import_module("zoo.profile"), "peaks", lambda *_, **__: PEAKS)


def test_flops_equal_a_hand_count():
    """Of a transformer: projections, the products of attention, MLP and head, all 2 FLOPs a multiply-add."""
    found = zoo.profile("transformer_nano", tokens=64, batch=3, device="meta", training=False)
    c = zoo.create_model("transformer_nano", device="meta").config
    rows, layers = 3 * 64, {layer.name: layer for layer in found.layers}
    head = next(layer for layer in found.layers if layer.name == "head")
    assert head.flops == 2 * rows * c.dim * c.vocab_size
    linears = [layer for layer in found.layers if layer.kind == "Linear" and layer.name != "head"]
    for layer in linears:
        assert layer.flops == 2 * rows * layer.parameters, layer.name  # no biases
    mixer = layers["blocks.0.mixer"]
    inside = sum(layer.flops for layer in linears if layer.name.startswith("blocks.0.mixer."))
    rope = sum(
        layer.flops for layer in found.layers if layer.name.startswith("blocks.0.mixer.") and layer.kind != "Linear"
    )
    attention = mixer.flops - inside - rope
    products = 2 * 2 * 3 * c.dim * 64 * 64  # q k and weights v, of all heads
    turned = attention - products
    assert 0 <= turned <= 12 * rows * c.dim  # turning queries and keys
    assert found.phase("forward").flops == layers[""].flops


def test_pairs_texts_and_short_readers():
    """What a model reads besides tokens is counted: both texts of a pair, and the 77 vectors of a caption."""
    sizes = {"img_size": 8, "dims": (8, 16, 16), "depths": (0, 1, 1), "norm_groups": 4, "head_dim": 8}
    model = zoo.create_model("koala_700m", **sizes, context_dim=6, pooled_dim=5, device="meta")
    layers = {layer.name: layer for layer in zoo.profile(model, batch=2, training=False).layers}
    cross = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert (
        layers[f"{cross}.to_k"].flops == 2 * 2 * 77 * 6 * 16 and layers[f"{cross}.to_q"].flops == 2 * 2 * 16 * 16 * 16
    )
    two, pair = (
        zoo.profile(zoo.create_model("s4_text_nano", pair=pair, device="meta"), tokens=32, batch=rows, training=False)
        for pair, rows in ((False, 2), (True, 1))
    )
    assert pair.inputs == (1, 2, 32) and pair.phases[0].items == two.phases[0].items == 64
    head, compare = (next(one.flops for one in pair.layers if one.name == name) for name in ("head", "compare"))
    assert pair.phases[0].flops == two.phases[0].flops - head + compare and compare > 0
    assert zoo.profile("linformer_nano", device="meta", training=False).inputs == (1, 64)


def test_bytes_and_waterline_of_two_layers():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False), torch.nn.ReLU()).to("meta")
    x = torch.empty(3, 8, device="meta")
    with torch.no_grad(), Trace(layer) as trace:
        layer(x)
    assert [(k.flops, k.bytes, k.inside) for k in trace.kernels] == [
        (2 * 3 * 8 * 4, 4 * (3 * 8 + 8 * 4 + 3 * 4), ("", "0")), (0, 4 * 2 * 12, ("", "1")),
    ]  # fmt: skip
    assert trace.peak == 2 * 4 * 12
    assert waterline([Kernel("a", 200, 10, ()), Kernel("b", 0, 50, ())], PEAKS) == 2 + 5
    assert PEAKS.ridge == 10 and PEAKS.seconds(1000, 10) == 10


def predicted(name: str, batch: int) -> Profile:
    config = zoo.create_model(name, device="meta").config
    most = getattr(config, "max_length", 128 if batch > 1 else 64)
    training = batch > 1 or name not in TWO_AT_LEAST
    length = None if not hasattr(config, "vocab_size") else min(most, 128 if batch > 1 else 64)
    return zoo.profile(name, tokens=length, batch=batch, runs=1, training=training)


def check_memory(name: str, batch: int) -> None:
    for phase in predicted(name, batch).phases:
        if name in DECIDED or (name in STEPS_DIFFER and phase.name == "decode"):
            assert phase.memory >= 0.9 * phase.measured_memory, (name, phase)
        elif (name, batch, phase.name) not in NOT_PREDICTED:
            assert phase.memory == pytest.approx(phase.measured_memory, rel=0.1, abs=SLACK), (name, phase)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", QUICK)
def test_predicted_memory_is_what_the_allocator_sees(name, batch):
    check_memory(name, batch)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", sorted(set(zoo.list_models("*_nano")) - set(QUICK)))
def test_predicted_memory_of_every_nano(name, batch):
    check_memory(name, batch)


def test_memory_is_predicted_of_the_ways_that_are_taken():
    """Operations are counted by their operators, memory is of what small inputs take instead: to the byte."""
    model = zoo.create_model("mamba2_nano", device="meta")
    found = zoo.profile(model, tokens=64)
    run = zoo.profile("mamba2_nano", tokens=64, runs=1)
    assert [p.memory for p in found.phases] == [p.measured_memory for p in run.phases]
    step = found.phase("decode")
    assert (
        step.flops
        == run.phase("decode").flops
        > 2 * model.num_active_parameters() - model.config.vocab_size * model.config.dim
    )


def turned(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Of rows that do not lie in order, which are copied; the bias is added where the result is."""
    return layer(x.mT)


def channels_last(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Of a map (B, H, W, C)."""
    return layer(x.movedim(-1, 1))


LONE = {
    "few channels": (torch.nn.Conv2d(1, 8, 5, padding=2), (16, 1, 32, 32)),
    "a part of a vector": (torch.nn.Conv2d(40, 20, 3), (16, 40, 16, 16)),
    "in space": (torch.nn.Conv3d(3, 8, 3, padding=1), (16, 3, 8, 8, 8)),
    "strides": (torch.nn.Conv2d(16, 24, 3, 2, 1), (16, 16, 32, 32)),
    "depthwise": (torch.nn.Conv2d(12, 12, 3, padding=1, groups=12), (16, 12, 32, 32)),
    "groups": (torch.nn.Conv2d(12, 12, 3, padding=1, groups=2), (16, 12, 32, 32)),
    "pointwise": (torch.nn.Conv2d(16, 24, 1), (16, 16, 32, 32)),
    "transposed": (torch.nn.ConvTranspose2d(16, 24, 3, padding=1), (16, 16, 16, 16)),
    "transposed with strides": (torch.nn.ConvTranspose2d(16, 24, 3, 2, 1), (16, 16, 16, 16)),
    "channels last": (torch.nn.ConvTranspose2d(8, 16, 3, padding=1), (16, 32, 32, 8)),
    "one small image": (torch.nn.Conv2d(32, 48, 3, padding=1), (1, 32, 8, 8)),
    "one small image, strides": (torch.nn.Conv2d(64, 48, 2, 2), (1, 64, 8, 8)),
    "one small text": (torch.nn.Conv1d(16, 24, 5, padding=2), (1, 16, 64)),
    "one small space": (torch.nn.Conv3d(8, 12, 3, padding=1), (1, 8, 4, 6, 6)),
    "one small image, transposed": (torch.nn.ConvTranspose2d(16, 24, 3, 2, 1), (1, 16, 8, 8)),
    "groups of a half vector": (torch.nn.Conv2d(64, 64, 3, padding=1, groups=8), (1, 64, 8, 8)),
    "linear": (torch.nn.Linear(64, 192), (16, 256, 64)),
    "linear, turned": (torch.nn.Linear(64, 192), (16, 64, 256)),
}


@pytest.mark.parametrize("name", LONE)
def test_predicted_memory_of_one_layer(name):
    """Forward, with what it lays out anew."""
    layer, shape = LONE[name]
    call = {"channels last": channels_last, "linear, turned": turned}.get(name, type(layer).__call__)
    x, shaped = torch.randn(shape), torch.empty(shape, device="meta")
    trace = Trace(found := copy.deepcopy(layer).to("meta"))
    trace.keep([shaped])
    with torch.no_grad():
        with trace:
            call(found, shaped)
        assert trace.peak == pytest.approx(peak_memory(lambda: call(layer, x), x.device), rel=0.1)


@pytest.mark.parametrize("name", ["one small image", "one small text", "one small image, transposed", "pointwise"])
def test_predicted_memory_of_training_one_layer(name):
    layer, shape = LONE[name]
    trace = Trace(found := copy.deepcopy(layer).to("meta"))
    x, shaped = torch.randn(shape, requires_grad=True), torch.empty(shape, device="meta", requires_grad=True)
    trace.keep([shaped])
    with trace:
        found(shaped).square().mean().backward()
    layer.zero_grad()
    assert trace.peak == pytest.approx(peak_memory(lambda: layer(x).square().mean().backward(), x.device), rel=0.1)


def test_what_a_call_frees_and_writes_to_is_not_what_it_makes():
    """A tensor that was there before counts when it goes, and not where it is written to."""
    held = {"kept": torch.zeros(1 << 16, device="meta"), "gone": torch.zeros(1 << 14, device="meta")}
    with torch.no_grad(), Trace(torch.nn.Identity()) as trace:
        held["kept"][:8].add_(1)
        held["gone"] = held["gone"] + 1
        more = held["gone"] + 1
    assert (trace.peak, trace.live) == (1 << 16, 1 << 16) and more.is_meta


def test_state_bytes_are_those_of_the_state():
    grows = dict(zoo.profile("transformer_nano", tokens=64, batch=2, device="meta").state_bytes)
    constant = dict(zoo.profile("mamba2_nano", tokens=64, device="meta").state_bytes)
    assert set(constant.values()) == {146_432}
    assert grows[64] - grows[32] == 32 * (grows[64] - grows[16]) // 48 > 0
    assert grows[64] >= 4 * 2 * zoo.create_model("transformer_nano", device="meta").state_size(64)


def test_a_model_stays_as_it_is():
    model = zoo.create_model("vit_nano").eval()
    model.head.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = zoo.profile(model, runs=1)
    assert model.head.training and not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    seconds, gap = found.layers[0].seconds, found.phase("training").gap
    assert seconds is not None and seconds > 0 and gap is not None and gap > 0 and found.unit == "image"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "another"  # type: ignore[misc]


def test_large_models_are_counted_without_memory():
    found = zoo.profile("moe_8x130m", device="meta", tokens=16, training=False)
    assert found.active_parameters < found.parameters and found.peaks is None
    assert all(phase.seconds is None and phase.bound is None for phase in found.phases)
    with pytest.raises(ValueError, match="phase must be one of forward, decode"):
        found.phase("training")


def test_energy_is_asked_for(monkeypatch):
    monkeypatch.setattr(
        import_module("zoo.profile"),
        "measured_energy",
        lambda call, device: Energy(call() is None or 2.0, f"RAPL {device}"),
    )
    found = zoo.profile("vit_nano", training=False, runs=1, energy=True)
    assert (found.phases[0].energy, found.energy_source) == (2.0, "RAPL cpu")
    assert zoo.profile("vit_nano", training=False, runs=1).energy_source == "not measured"


def test_what_cannot_be_profiled(monkeypatch):
    with pytest.raises(ValueError, match="unknown model"):
        zoo.profile("mamba9")
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        zoo.profile("mamba2_nano", tokens=0)
    with pytest.raises(ValueError, match="take a batch of 2 or leave out training"):
        zoo.profile("shvit_nano", device="meta")
    with pytest.raises(ValueError, match="device must be one that is here"):
        zoo.profile("mamba2_nano", device="mps")
    with pytest.raises(ValueError, match="depends on values, so it cannot be counted without running it"):
        zoo.profile("hamburger_nano", tokens=8, device="meta")
    with pytest.raises(ValueError, match="device can be given with a model's name only"):
        zoo.profile(zoo.create_model("vit_nano"), device="cpu")
    monkeypatch.setattr(import_module("zoo.profile.measure"), "free_memory", lambda _: 1 << 20)
    with pytest.raises(ValueError, match=r"needs 0\.\d GiB, cpu has 0\.0 GiB free"):
        zoo.profile("transformer_nano", training=False)


def test_peaks_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    for name, value in (("SIDE", 32), ("COPIED", 1 << 12), ("RUNS", 1)):
        monkeypatch.setattr(import_module("zoo.profile.peaks"), name, value)
    first = measured_peaks()
    assert first.flops > 0 and measured_peaks() == first and (cache_folder() / "peaks.json").exists()
    (tmp_path / "peaks.json").write_text("{broken")
    assert measured_peaks().dtype == "float32"


def test_peaks_are_never_lowered_by_a_busy_machine(tmp_path, monkeypatch):
    module = import_module("zoo.profile.peaks")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    found = iter(
        [Peaks("cpu", "float32", 12.0, 2.0), Peaks("cpu", "float32", 90.0, 1.0), Peaks("cpu", "float32", 5.0, 3.0)]
    )
    monkeypatch.setattr(module, "_measured", lambda *_: next(found))
    assert measured_peaks().flops == 12 and measured_peaks(fresh=True).bandwidth == 1
    assert (measured_peaks().flops, measured_peaks().bandwidth) == (90, 2)
    measured_peaks(fresh=True)
    assert (measured_peaks().flops, measured_peaks().bandwidth) == (90, 3)


def test_tries_go_on_while_they_bring_more(monkeypatch):
    module, asked = import_module("zoo.profile.peaks"), []
    for name, value in (("SIDE", 8), ("COPIED", 8), ("TRIES", 4)):
        monkeypatch.setattr(module, name, value)
    taken = iter([8.0, 8.0, 4.0, 8.0, 4.0, 8.0])  # of the product, of the copy
    monkeypatch.setattr(module, "_best", lambda call, _: asked.append(call) or next(taken))
    assert measured_of(module) == (2 * 8**3 / 4.0, 2 * 8 / 8.0) and len(asked) == 6


def measured_of(module) -> tuple[float, float]:
    found = module._measured(torch.device("cpu"), torch.float32)
    return found.flops, found.bandwidth


def test_impossible_figures_are_told_and_peaks_measured_again(monkeypatch, capsys):
    asked, high = [], Peaks("cpu", "float32", 1e15, 1e15)

    def peaks(*_, fresh=False):
        asked.append(fresh)
        return high if True in asked and len(asked) < 4 else PEAKS

    monkeypatch.setattr(import_module("zoo.profile"), "peaks", peaks)
    found = zoo.profile("vit_nano", training=False, runs=1)
    assert asked == [False, True, False] and found.peaks == high and found.doubt is None
    found = zoo.profile("vit_nano", training=False, runs=1)
    assert found.doubt is not None and "the peaks are too low" in found.doubt and "--fresh-peaks" in found.doubt
    assert main(["profile", "vit_nano", "--no-training", "--runs", "1"]) == 0
    assert capsys.readouterr().err.count("warning: the peaks are too low") == 1


def test_command_measures_peaks_again(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(import_module("zoo.profile"), "peaks", lambda *_, **more: asked.append(more) or PEAKS)
    assert main(["profile", "vit_nano", "--no-training", "--runs", "1", "--fresh-peaks"]) == 0
    assert asked[0] == {"fresh": True}
    assert main(["profile", "vit_nano", "--device", "meta", "--fresh-peaks"]) == 2
    assert "nothing runs on meta" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    path = tmp_path / "profile.json"
    assert main(["profile", "mamba2_nano", "--tokens", "32", "--device", "meta", "--json", str(path)]) == 0
    assert "471,008 parameters" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["name"] == "mamba2_nano" and {p["name"] for p in record["phases"]} == {
        "forward",
        "training",
        "decode",
    }
    assert main(["profile", "mamba9"]) == 2 and "unknown model" in capsys.readouterr().err


def test_steps_are_timed_as_generate_takes_them(monkeypatch):
    """By the programs of C that `zoo.generate` writes, in the profile and in the idealised runtime."""
    taken, call = [], Steps.__call__
    monkeypatch.setattr(Steps, "__call__", lambda self, *given: taken.append(self) or call(self, *given))
    model = zoo.create_model("mamba2_nano").eval()
    zoo.profile(model, tokens=8, training=False, runs=3)
    assert len(taken) == 1 + 3 and "stepper" not in vars(model)
    idealised_runtime(model, (4, 8, 12), (10,), runs=2)
    assert len(taken) == 1 + 3 + 4 * (1 + 2) * STEPS and "stepper" not in vars(model)

"""DeFTAN-II: spectra as torch's, groups and attention written out, scale and length, the authors' names, files."""

from __future__ import annotations

import wave
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

import zoo
from zoo.audio import DeFTAN2, DeFTAN2Config, read_wave, spectrum, waveform, write_wave
from zoo.audio.deftan2 import DualPathFeedForward, EmphasisedAttention, SubgroupDense, SubgroupTransformer
from zoo.checkpoints.convert import deftan2
from zoo.cli import main
from zoo.train.data import MicrophonesDataModule
from zoo.train.data.microphones import FURTHEST
from zoo.train.tasks import SpeechEnhancement


def config(**options: Any) -> DeFTAN2Config:
    given = {"num_mics": 3, "num_sources": 2, "window": 16, "depth": 2, "dim": 6, "num_heads": 2, "head_dim": 5}
    return DeFTAN2Config(**{**given, "hidden_dim": 10, "neighbors": 3, "drop_rate": 0.0, **options})


@pytest.fixture
def model() -> DeFTAN2:
    torch.manual_seed(0)
    return DeFTAN2(config()).double().eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_spectra_are_those_of_torch() -> None:
    x, hann = torch.randn(2, 3, 80, dtype=torch.double), torch.hann_window(16, dtype=torch.double)
    found = spectrum(x, 16)
    wanted = torch.stft(x.flatten(0, 1), 16, 8, window=hann, return_complex=True)
    close(found.flatten(0, 1), wanted.mT)
    close(waveform(found, 16), x)
    other = torch.randn_like(found)  # the spectrum of no wave
    other[..., (0, -1)] = other[..., (0, -1)].real + 0j
    close(waveform(other, 16).flatten(0, 1), torch.istft(other.flatten(0, 1).mT, 16, 8, window=hann))


def test_groups_read_one_another() -> None:
    layer = SubgroupDense(2, 3, torch.nn.Conv1d).double()
    a, b, c = torch.randn(3, 1, 2, 7, dtype=torch.double)
    first, second, third = layer.blocks
    close(layer([a, b, c]), third(torch.cat([second(torch.cat([first(a), b], 1)), c], 1)))


def test_attention_written_out() -> None:
    layer, x = EmphasisedAttention(6, 2, 5, 0.0).double(), torch.randn(2, 9, 6, dtype=torch.double)
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
    kernel = layer.emphasis.weight  # (12, 6, 3)
    p = torch.stack([torch.einsum("bkc,ock->bo", padded[:, i : i + 3], kernel) for i in range(9)], 1)
    p = p[..., :6] * p[..., 6:].sigmoid()
    heads = []
    for h in range(2):
        q, k, v = (
            part @ m.weight[5 * h : 5 * h + 5].T for part, m in ((p, layer.query), (p, layer.key), (x, layer.value))
        )
        weights = torch.einsum("bid,bjd->bij", q.softmax(-1), k.softmax(1)) / 5**0.5  # as a matrix of all pairs
        heads.append(weights @ v)
    close(layer(x), layer.out(torch.cat(heads, -1)))


def test_the_feed_forward_network_written_out() -> None:
    layer, x = DualPathFeedForward(6, 10, 2, 0.0).double(), torch.randn(1, 11, 6, dtype=torch.double)
    mixed = torch.nn.functional.gelu(layer.mixed(x))[0].T  # (5, 11)
    conv, norm, activation = layer.conv
    reached = torch.nn.functional.pad(mixed, (4, 4))
    out = torch.stack(
        [torch.einsum("ck,ock->o", reached[:, i : i + 9 : 2], conv.weight) + conv.bias for i in range(11)], 1
    )
    halves = torch.nn.functional.gelu(layer.plain(x)), activation(norm(out[None])).mT
    close(layer(x), layer.out(torch.cat(halves, -1)))


def test_neighbours_are_read_together_and_spread_again() -> None:
    c = config()
    layer, x = SubgroupTransformer(c, 1).double(), torch.randn(2, 6, 8, dtype=torch.double)
    for parameter in (*layer.attention.out.parameters(), *layer.mlp.out.parameters()):
        torch.nn.init.zeros_(parameter)
    normed = torch.nn.functional.layer_norm(x.mT, (6,), layer.norm.weight, layer.norm.bias).mT
    unfolded = torch.nn.functional.unfold(normed[..., None], (3, 1))  # (2, 18, 6): channels, and offsets within
    h = layer.subgroups([unfolded[:, i::3] for i in range(3)])
    close(layer(x), x + layer.spread(h))


@pytest.mark.parametrize("length", [1, 5, 64, 101])
def test_any_length_and_any_loudness(model: DeFTAN2, length: int) -> None:
    x = torch.randn(2, 3, length, dtype=torch.double)
    found = model(x)
    assert found.shape == (2, 2, length)
    torch.testing.assert_close(model(-1 * x).shape, found.shape)
    torch.testing.assert_close(model(1e3 * x), 1e3 * found, rtol=1e-9, atol=1e-9)


def test_silence_is_answered_by_silence(model: DeFTAN2) -> None:
    x = torch.zeros(1, 3, 50, dtype=torch.double, requires_grad=True)
    found = model(x)
    found.sum().backward()
    assert found.abs().max() < 1e-150 and x.grad is not None and torch.isfinite(x.grad).all()


def test_the_authors_names(model: DeFTAN2, tmp_path: Any) -> None:
    """A file under their names, norms of four axes, gives the same network."""
    theirs = {}
    for key, tensor in model.state_dict().items():
        for new, old in (
            ("encode_groups.", "up_conv.2."), ("encode.", "up_conv."), ("decode_groups.", "down_conv.1."),
            ("decode.", "down_conv.0."), (".frequency.", ".F_"), (".time.", ".T_"), ("attention_norm", "att.norm"),
            ("mlp_norm", "ffw.norm"), ("subgroups", "inv"), ("spread", "linear"),
            ("attention.emphasis", "att.fn.cv_qk.0"),
            ("attention.query", "att.fn.to_q"), ("attention.key", "att.fn.to_k"), ("attention.value", "att.fn.to_v"),
            ("attention.out", "att.fn.to_out.0"), ("mlp.plain", "ffw.fn.PW1.0"), ("mlp.mixed", "ffw.fn.PW2.0"),
            ("mlp.conv", "ffw.fn.DW_Conv"), ("mlp.out", "ffw.fn.PW3.0"),
        ):  # fmt: skip
            key = key.replace(new, old)
        if ".F_norm." in key or ".T_norm." in key:
            key = key.replace("weight", "gamma").replace("bias", "beta")
            tensor = tensor[None, :, None, None]
        theirs[key] = tensor
    assert deftan2.recognises(theirs) and not deftan2.recognises(model.state_dict())
    found = deftan2.to_zoo(theirs)
    assert set(found) == set(model.state_dict())
    assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 2, 9), torch.zeros(3, 9), torch.zeros(1, 3, 0), torch.zeros(1, 3, 9).long()]
)
def test_wrong_waves(model: DeFTAN2, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"waves must be \(batch, num_mics 3, samples\) floats with a sample or more"):
        model(x)


@pytest.mark.parametrize("options", [{"window": 15}, {"hidden_dim": 7}, {"neighbors": 5}])
def test_wrong_options(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="window must be even and 8 or more, hidden_dim even and neighbors at most 4"):
        config(**options)


def test_the_task_measures_the_gain() -> None:
    task: Any = SpeechEnhancement("deftan2_nano", window=64)
    task.configure_model()
    task.log_dict = task.log = lambda *_, **__: None
    data = MicrophonesDataModule(samples=200)
    data.setup()
    mixtures, voices = data.sources["val"].fetch(torch.arange(4), 0)
    task.eval()
    with torch.no_grad():
        task.validation_step((mixtures, voices), 0)
        found = task.trained(mixtures)
        loss = task.training_step((mixtures, voices), 0)
    gain = si_sdr(found, voices) - si_sdr(mixtures[:, :1], voices)
    assert task.means["si_sdr_gain"].compute().item() == pytest.approx(gain.mean().item(), rel=1e-5)
    hann = torch.hann_window(64)
    spectra = [torch.stft(part[:, 0], 64, 32, window=hann, return_complex=True) for part in (found, voices, mixtures)]
    ours, theirs, whole = (torch.view_as_real(part) for part in spectra)
    wanted = ((ours - theirs).abs().mean() + ((whole - ours) - (whole - theirs)).abs().mean()) / 2
    torch.testing.assert_close(loss, wanted)
    task.loss = "si_sdr"
    ratio = si_sdr(task.trained(mixtures), voices).mean()
    torch.testing.assert_close(task.training_step((mixtures, voices), 0), -ratio)
    with pytest.raises(ValueError, match="loss must be 'pcm' or 'si_sdr', got 'mse'"):
        SpeechEnhancement("deftan2_nano", loss="mse")
    with pytest.raises(ValueError, match="window must be even and 2 or more, got 7"):
        SpeechEnhancement("deftan2_nano", window=7)


def test_generated_scenes_have_sides() -> None:
    data = MicrophonesDataModule(samples=500, spread=0.0)
    data.setup()
    mixtures, voices = data.sources["test"].fetch(torch.arange(30), 0)
    assert mixtures.shape == (30, 2, 500) and voices.shape == (30, 1, 500)
    again = data.sources["test"].fetch(torch.tensor([7]), 0)[0]
    assert torch.equal(again[0], mixtures[7])
    assert si_sdr(mixtures[:, :1], voices).mean().abs() < 2  # as much noise as voice
    assert (mixtures[:, 0] != mixtures[:, 1]).any(1).all() and FURTHEST < 64
    with pytest.raises(ValueError, match="samples >= 64"):
        MicrophonesDataModule(samples=63)


def test_predict_writes_the_speech_and_draws(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model: Any = zoo.create_model("deftan2_nano").eval()
    zoo.save_model(model, tmp_path / "model")
    heard = (0.3 * torch.randn(2, 900)).clamp(-1, 1)
    write_wave(tmp_path / "in.wav", heard, 8000)
    read = read_wave(tmp_path / "in.wav", 2, 8000)
    torch.testing.assert_close(read, heard, atol=2**-15, rtol=1e-4)
    for output in ("out.wav", "out.png"):
        asked = [
            "predict",
            f"local-dir:{tmp_path / 'model'}",
            str(tmp_path / "in.wav"),
            "--output",
            str(tmp_path / output),
        ]
        assert main(asked) == 0
        assert f"written: {tmp_path / output}" in capsys.readouterr().out
    with torch.no_grad():
        wanted = model(read[None])[0]
    wanted = wanted * (wanted[0] @ read[0]) / (wanted[0] @ wanted[0])
    torch.testing.assert_close(read_wave(tmp_path / "out.wav", 1, 8000), wanted, atol=2**-15, rtol=1e-4)


def test_wrong_sounds(tmp_path: Any) -> None:
    path = tmp_path / "a.wav"
    write_wave(path, torch.zeros(2, 10), 8000)
    with pytest.raises(ValueError, match="must hold a sound, got 10 silent samples"):
        read_wave(path, 2, 8000)
    with pytest.raises(ValueError, match="must have 2 channels and 16000 samples a second"):
        read_wave(path, 2, 16000)
    with pytest.raises(ValueError, match="waves must be finite, got 1 samples that are not"):
        write_wave(path, torch.tensor([[0.5, torch.nan]]), 8000)
    path.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="must be a WAV file of 16 bits"):
        read_wave(path, 2, 8000)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 1, 8000, 4, "NONE", ""))
        file.writeframes(np.zeros(4, np.uint8).tobytes())
    with pytest.raises(ValueError, match="it has 1, 8000 and 8"):
        read_wave(path, 1, 8000)

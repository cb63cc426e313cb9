"""Enhancement of speech: one wave out of what several microphones heard."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as si_sdr

from zoo.audio import spectrum
from zoo.train.tasks.base import Task
from zoo.train.tasks.metrics import Mean

Batch = tuple[Tensor, Tensor]


class SpeechEnhancement(Task):
    r"""Phase-constrained magnitude loss, or SI-SDR; batches are `(mixtures (B, M, N), sources (B, S, N))`.

    With y a source as the first microphone hears it, x what that hears altogether and S spectra, real and imaginary
    parts apart,

    .. math:: (|S(\hat y) - S(y)| + |S(x - \hat y) - S(x - y)|) / 2, \quad \text{means over all numbers}

    as the authors of DeFTAN-II (arXiv:2308.15777) train. With `loss="si_sdr"` it is minus the scale-invariant ratio of
    signal to distortion in dB, which says nothing of how loud the answer is. Logs `{train,val,test}/loss`, and
    `{val,test}/si_sdr` and `si_sdr_gain`, in dB: that ratio, and how much it is above that of x.

    Args:
        model: see `Task`, which also has the other arguments.
        loss: "pcm" or "si_sdr".
        window: samples of the spectra of "pcm", even.

    Raises:
        ValueError: for an odd window or another loss.
    """

    unit = "waves"

    def __init__(
        self,
        model: str | nn.Module,
        model_args: dict[str, Any] | None = None,
        *,
        loss: str = "pcm",
        window: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, model_args, **kwargs)
        if loss not in ("pcm", "si_sdr"):
            raise ValueError(f"loss must be 'pcm' or 'si_sdr', got {loss!r}")
        if window < 2 or window % 2:
            raise ValueError(f"window must be even and 2 or more, got {window}")
        self.loss, self.window = loss, window
        self.means = nn.ModuleDict({name: Mean() for name in ("loss", "si_sdr", "si_sdr_gain")})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        mixtures, sources = batch
        return self.log_training(self._loss(self.trained(mixtures).float(), sources, mixtures).mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _loss(self, found: Tensor, sources: Tensor, mixtures: Tensor) -> Tensor:
        if self.loss == "si_sdr":
            return -si_sdr(found, sources)
        return spectral_loss(found, sources, mixtures, self.window)

    def _evaluate(self, batch: Batch, split: str) -> None:
        mixtures, sources = batch
        found = self.evaluated(mixtures).float()
        ratio = si_sdr(found, sources)
        values = {
            "loss": self._loss(found, sources, mixtures),
            "si_sdr": ratio,
            "si_sdr_gain": ratio - si_sdr(mixtures[:, :1].expand_as(sources), sources),
        }
        for name, value in values.items():
            mean = cast(Mean, self.means[name])
            mean.update(value)
            self.log(f"{split}/{name}", mean, on_epoch=True, prog_bar=True)


def spectral_loss(found: Tensor, sources: Tensor, mixtures: Tensor, window: int) -> Tensor:
    """Of waves (B, S, N) twice and (B, M, N) the loss (B,), see `SpeechEnhancement`."""
    total = mixtures[:, :1]
    parts = ((found, sources), (total - found, total - sources))
    differences = [spectrum(a - b, window) for a, b in parts]
    return sum((d.real.abs() + d.imag.abs()).flatten(1).mean(1) / 4 for d in differences)  # type: ignore[return-value]

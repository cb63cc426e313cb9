"""Training from the last layer backwards."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ProgressiveUnfreezing(Callback):
    """From an epoch on only the last layers learn, then more and more of those before them.

    What learns depends on the epoch alone, so that a resumed run goes on as it would have. Parameters keep their place
    in the optimiser and are left as they are while they are frozen, by weight decay too.

    Args:
        layers: names of submodules or parameters of the model (or what these begin with), in the order in which they
            begin to learn. Whatever none of them names begins with the last.
        first_epoch: epoch from which the first of them learns alone; before it everything learns.
        every_n_epochs: epochs after which the next one joins.

    Raises:
        ValueError: for no layers, or numbers of epochs out of range; when training starts, for a name that fits
            no parameter.
    """

    def __init__(self, layers: list[str], *, first_epoch: int = 0, every_n_epochs: int = 1) -> None:
        if not layers or first_epoch < 0 or every_n_epochs < 1:
            raise ValueError(
                "layers must not be empty, first_epoch be at least 0 and every_n_epochs at least 1, got "
                f"{layers}, {first_epoch}, {every_n_epochs}"
            )
        self.layers, self.first_epoch, self.every_n_epochs = list(layers), first_epoch, every_n_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for every name, and freeze: an epoch that is resumed in its middle does not start again."""
        names = [name for name, _ in self._model(pl_module).named_parameters()]
        unknown = [layer for layer in self.layers if not any(_within(name, layer) for name in names)]
        if unknown:
            raise ValueError(f"no parameter's name begins with {unknown}; the model has {names}")
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze and unfreeze."""
        for name, parameter in self._model(pl_module).named_parameters():
            places = [place for place, layer in enumerate(self.layers) if _within(name, layer)]
            place = places[0] if places else len(self.layers) - 1
            begins = self.first_epoch + place * self.every_n_epochs
            parameter.requires_grad_(trainer.current_epoch < self.first_epoch or trainer.current_epoch >= begins)

    def _model(self, pl_module: LightningModule) -> Any:
        return pl_module.trained


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(layer.rstrip(".") + ".")

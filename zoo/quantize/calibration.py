"""The inputs that a calibrated method sees, and what it learns of the inputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

COMPARED = 1 << 24  # outputs that are kept of a model
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

if TYPE_CHECKING:
    from zoo.text import Tokenizer


@dataclass(frozen=True)
class Calibration:
    """Batches of inputs: tokens (B, T) int64 of a language model, or images (B, C, H, W).

    They must not be of the text or the images that the model is scored on: ``score_text`` and ``zoo eval`` warn of it.

    Raises:
        ValueError: for no batch, or one that is no tensor, or holds what is no number.
    """

    batches: Sequence[Tensor]
    tokenizer: Tokenizer | None = None
    """Which has made the tokens, where that is known: it must be the model's."""

    def __post_init__(self):
        if not self.batches or not all(isinstance(batch, Tensor) and batch.numel() for batch in self.batches):
            raise ValueError("calibration needs at least one batch, each a tensor of inputs of the model")
        if not all(batch.is_meta or batch.isfinite().all() for batch in self.batches):
            raise ValueError("calibration holds infinities or what is no number: leave these inputs out")

    @classmethod
    def of_text(cls, tokenizer: Tokenizer, text: str, *, length: int = 128, count: int = 64, batch_size: int = 8):
        """The first ``count`` pieces of ``length`` tokens of a text.

        Raises:
            ValueError: for a text without a whole piece.
        """
        ids = torch.tensor(tokenizer.encode(text))
        pieces = ids[: len(ids) // length * length].view(-1, length)[:count]
        if not len(pieces):
            raise ValueError(f"the calibration text has {len(ids)} tokens, fewer than one piece of {length}")
        return cls(pieces.split(batch_size), tokenizer)

    @classmethod
    def of_images(cls, model: nn.Module, folder: str | Path, *, count: int = 64, batch_size: int = 8):
        """``count`` of the images below a folder, evenly chosen of all by name, prepared as the model has it.

        Raises:
            ValueError: for a model that takes no images, or a folder without any.
        """
        from zoo.predict import image_reader

        if not hasattr(model, "pretrained_cfg"):
            raise ValueError(f"{type(model).__name__} takes no images: calibrate it with a text")
        every = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGES)
        if not every:
            raise ValueError(f"{folder} holds no image ({', '.join(IMAGES)})")
        chosen = every[:: -(-len(every) // count)]
        return cls(torch.stack(list(map(image_reader(model), chosen))).split(batch_size))

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError for inputs of another kind than the model takes, or tokens of another vocabulary."""
        if self.tokenizer is not None:
            self.tokenizer.check(model)
        vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
        wanted = "images" if hasattr(model, "pretrained_cfg") else "tokens" if vocabulary is not None else None
        for batch in self.batches:
            found = "images" if batch.is_floating_point() else "tokens"
            if wanted not in (None, found):
                raise ValueError(f"calibration holds {found}, {type(model).__name__} takes {wanted}")
            if vocabulary is None or found == "images":
                continue
            least, most = (int(token) for token in batch.aminmax())
            if least < 0 or most >= vocabulary:
                raise ValueError(
                    f"calibration holds token {most if least >= 0 else least}, the model has {vocabulary}: it was made "
                    "by another model's tokenizer"
                )

    def run(self, model: nn.Module) -> None:
        """Every batch through the model once."""
        device = next(model.parameters()).device
        for batch in self.batches:
            model(batch.to(device))

    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        """The model's outputs for each batch."""
        device = next(model.parameters()).device
        for batch in self.batches:
            yield model(batch.to(device))


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While open, ``see(name, x)`` gets the input x (..., C) of each call of a module."""

    def hook(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        see(name, inputs[0].detach())

    handles = [module.register_forward_pre_hook(partial(hook, name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def largest_inputs(model: nn.Module, names: Iterable[str], calibration: Calibration) -> dict[str, Tensor]:
    """max |x_j| (C,) over all inputs x of each named linear layer, float32."""
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        largest = x.flatten(0, -2).abs().amax(0).float()
        found[name] = torch.maximum(found[name], largest) if name in found else largest

    with torch.no_grad(), watching({name: model.get_submodule(name) for name in names}, see):
        calibration.run(model)
    return found


def model_outputs(model: nn.Module, calibration: Calibration) -> Tensor:
    """A model's outputs for all batches in one row; of large ones only every so many positions."""
    batches = len(calibration.batches)
    rows = [output.flatten(0, -2).float() for output in calibration.outputs(model)]
    stride = max(1, -(-sum(row.numel() for row in rows) // COMPARED)) if batches else 1
    return torch.cat([row[::stride].flatten() for row in rows])

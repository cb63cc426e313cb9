"""The inputs that a calibrated method sees, and what it learns of the inputs of layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

COMPARED = 1 << 24  # outputs that are kept of a model
Batch = Tensor | tuple[Tensor, ...]
INPUTS = (
    "inputs that the model takes, such as tokens (B, T), a list of such batches, the path of a text or of a folder of "
    "images, or Calibration.of_text(tokenizer, text) of zoo.quantize"
)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

if TYPE_CHECKING:
    from zoo.text import Tokenizer


@dataclass(frozen=True)
class Calibration:
    """Batches of inputs: tokens (B, T) int64 of a language model, images (B, C, H, W), or all that a model is called
    with, such as the noisy images, times and classes of a diffusion model (``of_samples``).

    They must not be of the text or the images that the model is scored on: ``score_text`` and ``zoo eval`` warn of it.

    Raises:
        ValueError: for no batch, or one that is no tensor, or holds what is no number.
    """

    batches: Sequence[Batch]
    tokenizer: Tokenizer | None = None
    """Which has made the tokens, where that is known: it must be the model's."""

    def __post_init__(self):
        given = self.tensors
        if not self.batches or not all(isinstance(tensor, Tensor) and tensor.numel() for tensor in given):
            raise ValueError("calibration needs at least one batch, each a tensor of inputs of the model")
        if not all(tensor.is_meta or tensor.isfinite().all() for tensor in given):
            raise ValueError("calibration holds infinities or what is no number: leave these inputs out")

    @property
    def tensors(self) -> list[Tensor]:
        """All of all batches."""
        return [tensor for batch in self.batches for tensor in _arguments(batch)]

    @property
    def inputs(self) -> list[Tensor]:
        """What comes first of each batch."""
        return [_arguments(batch)[0] for batch in self.batches]

    @classmethod
    def of(cls, given: Given, model: Any) -> Calibration:
        """What ``zoo.quantize`` and others take: a calibration, inputs, or the path of some.

        Args:
            given: a calibration as it is; a tensor of inputs, in batches of eight; a list of batches; or the path of a
                text in UTF-8, for the model's own tokenizer, or of a folder of images.
            model: which is calibrated.

        Raises:
            TypeError: for anything else. ValueError, OSError: for a path without text or images that the model takes.
        """
        if isinstance(given, Calibration):
            return given
        if isinstance(given, Tensor):
            return cls(given.split(8))
        if isinstance(given, (str, Path)):
            return cls.of_images(model, given) if os.path.isdir(given) else cls._of_file(model, given)
        kind = type(given).__name__
        if isinstance(given, (list, tuple)):
            if all(isinstance(tensor, Tensor) for batch in given for tensor in _arguments(batch)):
                return cls(given)
            kind += f" of {type(given[0]).__name__}"
        raise TypeError(f"calibration must be {INPUTS}, got {kind}")

    @classmethod
    def _of_file(cls, model: Any, path: str | Path) -> Calibration:
        from zoo.text import load_tokenizer

        if not os.path.isfile(path):  # of what is too long for a name, too
            raise FileNotFoundError(
                f"calibration {str(path)[:60]!r} is no file or folder; of a text itself take Calibration.of_text"
            )
        if hasattr(model, "pretrained_cfg"):
            raise ValueError(f"{type(model).__name__} takes images: calibrate it with a folder of them, got {path}")
        name = getattr(model, "source_folder", None) or getattr(model, "config_name", None)
        if name is None:
            raise ValueError(f"{type(model).__name__} is not of create_model: calibrate it with tokens (B, T)")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be text in UTF-8: {error}") from error
        return cls.of_text(load_tokenizer(name), text)

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

    @classmethod
    def of_samples(
        cls,
        model: Any,
        *,
        count: int = 64,
        steps: int = 20,
        at: Sequence[int] | None = None,
        guidance: float = 0.0,
        seed: int = 0,
    ):
        """What a diffusion model is called with at the steps of drawing ``count`` images: a batch (images, times,
        classes) a step, of all classes in turn and of none. No data are needed.

        Args:
            model: of ``zoo.generative.DiffusionModel``; it is left in its mode.
            steps: of drawing.
            at: of which steps, from 0; None for all.
            guidance: as of ``sample``; a batch then holds each image with its class and without.
            seed: of the noise.

        Raises:
            ValueError: for a model that is none, or steps that there are not.

        Paper: Li et al., "Q-Diffusion: Quantizing Diffusion Models", arXiv 2302.04304: inputs over all times.
        """
        if not hasattr(model, "guided"):
            raise ValueError(f"{type(model).__name__} is no diffusion model: calibrate it with a text or images")
        chosen = range(steps) if at is None else at
        if not all(0 <= step < steps for step in chosen):
            raise ValueError(f"at must hold steps from 0 to {steps - 1}, got {list(chosen)}")
        seen: list[tuple[Tensor, ...]] = []

        def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(tuple(tensor.clone() for tensor in args))

        handle = model.register_forward_pre_hook(see)
        try:
            classes = torch.arange(count, device=next(model.parameters()).device) % (model.config.num_classes + 1)
            generator = torch.Generator().manual_seed(seed)
            model.sample(count, classes=classes, steps=steps, guidance=guidance, generator=generator)
        finally:
            handle.remove()
        return cls([seen[step] for step in chosen])

    def check(self, model: nn.Module) -> None:
        """Raise a ValueError for inputs of another kind than the model takes, or tokens of another vocabulary."""
        if self.tokenizer is not None:
            self.tokenizer.check(model)
        if hasattr(model, "guided") and any(isinstance(batch, Tensor) for batch in self.batches):
            raise ValueError(
                f"{type(model).__name__} is called with noisy images and times: calibrate it with tuples of them, as "
                "Calibration.of_samples(model) makes"
            )
        vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
        wanted = "images" if hasattr(model, "pretrained_cfg") else "tokens" if vocabulary is not None else None
        for batch in self.inputs:
            found = "images" if batch.is_floating_point() else "tokens"
            if wanted not in (None, found):
                raise ValueError(f"calibration holds {found}, {type(model).__name__} takes {wanted}")
            if vocabulary is None or found == "images":
                continue
            if batch.dim() != 2:
                raise ValueError(f"calibration must hold tokens (B, T), got a tensor of shape {tuple(batch.shape)}")
            least, most = (int(token) for token in batch.aminmax())
            if least < 0 or most >= vocabulary:
                raise ValueError(
                    f"calibration holds token {most if least >= 0 else least}, the model has {vocabulary}: it was made "
                    "by another model's tokenizer"
                )

    def run(self, model: nn.Module) -> None:
        """Every batch through the model once."""
        for _ in self._calls(model):
            pass

    def outputs(self, model: nn.Module) -> Iterator[Tensor]:
        """The model's outputs for each batch; see ``said``."""
        for output in self._calls(model):
            yield said(output)

    def _calls(self, model: nn.Module) -> Iterator[Any]:
        device = next(model.parameters()).device
        for batch in self.batches:
            yield model(*(tensor.to(device) for tensor in _arguments(batch)))


Given = Calibration | Tensor | Sequence[Batch] | str | Path


def _arguments(batch: Batch) -> tuple[Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def said(output: Any) -> Tensor:
    """The tensor that a model returned, or the ``logits`` of what it returned, as models of transformers have them.

    Raises:
        TypeError: where there is neither.
    """
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"this method compares what a model says, a tensor or .logits, got {type(output).__name__}: wrap the model "
            "in a module that returns a tensor, or take rtn or easyquant, which compare nothing"
        )
    return found


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

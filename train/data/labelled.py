"""Images with labels as a source of batches, and how a model wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.images import to_mode
from zoo.train.data.loader import Batch
from zoo.train.data.rng import derive_seed, global_state_kept, seed_global


class LabelledImages:
    """The images numbered `members` of a map-style dataset of (PIL image, label).

    Transforms draw from the global generators, which are seeded for each sample by (seed, epoch, index) and put back
    afterwards; mixing draws by (seed, epoch, the batch's indices).
    """

    def __init__(
        self,
        dataset: Any,
        members: Tensor,
        transform: Callable[[Any], Tensor],
        in_chans: int,
        seed: int = 0,
        mix: Callable[[Tensor, Tensor], Batch] | None = None,
    ) -> None:
        self.dataset, self.members, self.transform = dataset, members, transform
        self.mode = "L" if in_chans == 1 else "RGB"
        self.seed, self.mix = seed, mix

    def __len__(self) -> int:
        return len(self.members)

    def fetch(self, indices: Tensor, epoch: int) -> Batch:
        images, labels = [], []
        with global_state_kept():
            for index in indices.tolist():
                seed_global(derive_seed(self.seed, epoch, index))
                image, label = self.dataset[int(self.members[index % len(self)])]
                images.append(self.transform(to_mode(image, self.mode)))
                labels.append(int(label))
            batch = torch.stack(images), torch.tensor(labels)
            if self.mix is None:
                return batch
            seed_global(derive_seed(self.seed, epoch, *indices.tolist()))
            return self.mix(*batch)


def input_config(pretrained_cfg: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """timm's input configuration: given values first, then the model's, then timm's defaults."""
    from timm.data.config import resolve_data_config

    config = resolve_data_config(pretrained_cfg=pretrained_cfg or {"input_size": (3, 224, 224)})
    chans, *shape = config["input_size"]
    chans, size = given.get("in_chans", chans), given.get("img_size", tuple(shape))
    if chans not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, got in_chans={chans}")
    shape = (size, size) if isinstance(size, int) else tuple(size)
    names = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    config = {"input_size": (chans, *shape), **{name: given.get(name, config[name]) for name in names}}
    for name in ("mean", "std"):
        values = tuple(config[name])
        if len(values) != chans and name in given:
            raise ValueError(f"{name} must have a value for each of {chans} channels, got {values}")
        config[name] = values if len(values) == chans else (float(np.mean(values)),) * chans
    return config

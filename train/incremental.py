"""Classes that come a task at a time, under one budget of memory for kept images and added layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.options import require_at_least
from zoo.layers.quant import count_parameters
from zoo.train.data.rng import derive_seed
from zoo.vision.base import VisionModel


class IncrementalClassifier(nn.Module):
    r"""MEMO: layers that all tasks share, and last layers a task, whose features one growing head reads.

    The first task trains all. Then the shared layers stay as they are, each task gets a copy of the newest last layers
    to train (the older ones stay), and a head over all features side by side, of which old rows start with zeros for
    new features: no answer changes when a task begins. A second head says, of the newest features alone, which new
    class it is or that it is an old one:

    .. math:: L = CE(h(\phi_1, ..., \phi_b), y) + \alpha \, CE(a(\phi_b), \max(0, y - y_{old} + 1))

    Afterwards new rows of the head are brought to the mean length of the old ones, and images are kept: of each class
    as many as the budget leaves beside the blocks, those whose mean features are the class's (herding).

    ``special`` says how much is a task's own: all layers are DER, none is replay alone, where the one model goes on.

    Args:
        model: an image classifier whose layers come one after the other; it is copied.
        special: last layers that each task has for itself.
        budget: bytes of all kept images and of the layers that the second task and later ones add.
        image_bytes: of a kept image; a byte a pixel and channel where None.
        steps, batch_size, lr: of a task, by AdamW; batches are drawn from its images and the kept ones alike.
        auxiliary: alpha.
        seed: of the batches; fresh heads are drawn as torch's own seed has it.

    Raises:
        ValueError: for another model or numbers out of range; when a task begins whose layers the budget
            does not hold.

    Paper: Zhou et al., "A Model or 603 Exemplars: Towards Memory-Efficient Class-Incremental Learning", arXiv
    2205.13218; DER: Yan et al., arXiv 2103.16788.
    """

    def __init__(
        self,
        model: VisionModel,
        *,
        special: int = 1,
        budget: int = 100_000,
        image_bytes: int | None = None,
        steps: int = 100,
        batch_size: int = 32,
        lr: float = 2e-3,
        auxiliary: float = 1.0,
        seed: int = 0,
    ):
        super().__init__()
        require_at_least(1, steps=steps, batch_size=batch_size, budget=budget, image_bytes=image_bytes)
        if not isinstance(model, VisionModel):
            raise ValueError(
                f"classes of images are learnt by an image classifier whose layers come one after the other, got "
                f"{type(model).__name__}: take one of create_model, such as vit_nano"
            )
        self.model: Any = copy.deepcopy(model)
        self.whole = list(self.model.layer_list()[1])
        if not 0 <= special <= len(self.whole):
            raise ValueError(f"special must be 0 to the {len(self.whole)} layers, got {special}")
        self.special, self.budget, self.image_bytes = special, budget, image_bytes
        self.steps, self.batch_size, self.lr, self.auxiliary, self.seed = steps, batch_size, lr, auxiliary, seed
        self.shared = len(self.whole) - special
        self.branches = nn.ModuleList([nn.ModuleList(self.whole[self.shared :])])
        self.head: Any = None
        self.sizes: list[int] = []
        self.kept: list[Tensor] = []  # of each class

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes so far)."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Of all branches, (B, tasks D)."""
        x = self.model.forward_embed(images)
        for layer in self.whole[: self.shared]:
            x = layer(x)
        return torch.cat([self._read(branch, x) for branch in self.branches], 1)

    def learn(self, images: Tensor, classes: Tensor) -> None:
        """A task: images (N, C, H, W) and their classes (N,), which begin where those of the tasks before ended.

        Raises:
            ValueError: for other classes, or a budget that does not hold the task's layers.
        """
        old, last = sum(self.sizes), int(classes.max()) + 1
        if int(classes.min()) != old:
            raise ValueError(f"the classes of this task begin at {old}, got {int(classes.min())}")
        self.begin(last - old)
        draws = torch.Generator().manual_seed(derive_seed(self.seed, len(self.sizes)))
        kept = [(part, classes.new_full((len(part),), index)) for index, part in enumerate(self.kept)]
        x, y = (torch.cat(parts) for parts in zip((images, classes), *kept, strict=True))
        second = None
        if old and self.auxiliary:
            second = nn.Linear(self.model.num_features, last - old + 1, device=images.device)
        learning = [*self.learning(), *(() if second is None else second.parameters())]
        optimizer = torch.optim.AdamW(learning, lr=self.lr, weight_decay=0.01)
        self.train()
        for _ in range(self.steps):
            chosen = torch.randint(len(x), (self.batch_size,), generator=draws).to(x.device)
            features = self.features(x[chosen])
            loss = F.cross_entropy(self.head(features), y[chosen])
            if second is not None:
                newest = features[:, -self.model.num_features :]
                loss = loss + self.auxiliary * F.cross_entropy(second(newest), (y[chosen] - old + 1).clamp(min=0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.eval()
        self._align(old)
        self._keep(images, classes, old)

    def begin(self, classes: int) -> None:
        """Room for a task of so many classes; no logit of an old class changes."""
        if self.sizes and self.special:
            if self.block_bytes * len(self.branches) > self.budget:
                raise ValueError(
                    f"a budget of {self.budget} bytes does not hold the layers of task {len(self.sizes) + 1}, "
                    f"{self.block_bytes} bytes a task: take fewer special layers"
                )
            self.branches.append(copy.deepcopy(self.branches[-1]))
        rows, width = sum(self.sizes) + classes, self.model.num_features * len(self.branches)
        head = nn.Linear(width, rows)
        with torch.no_grad():
            if (before := self.head) is not None:
                head.weight[: before.out_features] = F.pad(before.weight, (0, width - before.in_features))
                head.bias[: before.out_features] = before.bias
        self.head = head.to(next(self.model.parameters()).device)
        self.sizes.append(classes)
        if len(self.branches) > 1:
            self.requires_grad_(False)
            for part in (self.head, self.branches[-1]):
                part.requires_grad_(True)

    def learning(self) -> Iterator[nn.Parameter]:
        """The parameters that learn the newest task."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def train(self, mode: bool = True) -> IncrementalClassifier:
        """What is frozen stays in eval mode, its batch norms too."""
        super().train(mode)
        if mode and len(self.branches) > 1:
            self.model.eval()
            self.branches.eval()
            self.branches[-1].train()
        return self

    @property
    def block_bytes(self) -> int:
        """Of the layers that a task adds."""
        return 4 * count_parameters(self.branches[-1])

    def room(self, image: Tensor) -> int:
        """Images (C, H, W) that the budget holds beside the layers added so far."""
        left = self.budget - self.block_bytes * (len(self.branches) - 1)
        return left // (self.image_bytes or image.numel())

    def state(self) -> dict[str, Any]:
        """All that a later call needs, between two tasks; see ``restore``."""
        return {"sizes": list(self.sizes), "kept": list(self.kept), "weights": self.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state()`` was taken, in a new classifier of the same options."""
        for classes in state["sizes"]:
            self.begin(classes)
        self.load_state_dict(state["weights"])
        self.kept = list(state["kept"])
        self.eval()

    def _read(self, layers: Any, x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return self.model.forward_head(self.model.forward_norm(x), pre_logits=True)

    @torch.no_grad()
    def _align(self, old: int) -> None:
        if old:
            lengths = self.head.weight.norm(dim=1)
            self.head.weight[old:] *= lengths[:old].mean() / lengths[old:].mean()

    @torch.no_grad()
    def _keep(self, images: Tensor, classes: Tensor, old: int) -> None:
        each = max(1, self.room(images[0]) // sum(self.sizes))
        self.kept = [part[:each] for part in self.kept]
        for index in range(old, sum(self.sizes)):
            own = images[classes == index]
            self.kept.append(own[herded(F.normalize(self.features(own)), each)])


def herded(features: Tensor, count: int) -> Tensor:
    """Of features (N, D) the ``count`` whose mean is the nearest to the mean of all, chosen one by one."""
    mean, total, chosen = features.mean(0), torch.zeros_like(features[0]), []
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for number in range(min(count, len(features))):
        distance = (mean - (total + features) / (number + 1)).norm(dim=1)
        best = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)

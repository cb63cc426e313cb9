"""What was played, to learn from again: where sequences begin is drawn by how often they were used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.layers.options import require_above, require_at_least
from zoo.worlds import Played


class Replay:
    r"""The last ``capacity`` steps, and how often sequences from each were trained on (n) and imagined from (b).

    Dynamic frequency sampling draws where sequences begin without replacement, to train the world model by

    .. math:: p \propto \exp(-n / \tau), \quad \text{and to imagine from by } \;
        p \propto \exp((n - \alpha b' - \beta \max(0, n - b')) / \tau), \; b' = b / \text{share}

    so that what is new is trained on at once, and nothing is imagined from that the world model hardly knows.

    Args:
        capacity: steps that are kept.
        tau: how little counts tell; infinite draws all alike.
        alpha, beta: see above.
        share: sequences that are imagined from over those that are trained on, in an update.

    Raises:
        ValueError: for numbers out of range.

    Paper: Wang et al., "Drama", arXiv 2410.08893, section 2.3; numbers as the authors' code has them. Theirs leaves
    the counts of what is overwritten, and lets sequences run over the place where the newest step meets the oldest.
    """

    def __init__(self, capacity: int, *, tau: float = 10.0, alpha: float = 1.0, beta: float = 1.0, share: float = 1.0):
        require_at_least(1, capacity=capacity)
        require_at_least(0, alpha=alpha, beta=beta)
        require_above(0, tau=tau, share=share)
        self.capacity, self.tau, self.alpha, self.beta, self.share = capacity, tau, alpha, beta, share
        self.played: Played | None = None
        self.oldest = self.size = 0
        self.trained = torch.zeros(capacity)
        self.imagined = torch.zeros(capacity)

    def __len__(self) -> int:
        return self.size

    def add(self, played: Played) -> None:
        """Keep steps in a row, for the oldest ones where there is no room."""
        if self.played is None:
            self.played = Played(*(part.new_zeros(self.capacity, *part.shape[1:]) for part in played))
        for start in range(0, len(played.actions), self.capacity):
            part = [value[start : start + self.capacity] for value in played]
            count = len(part[0])
            places = (self.oldest + self.size + torch.arange(count)) % self.capacity
            for kept, value in zip(self.played, part, strict=True):
                kept[places] = value.to(kept.dtype)
            self.trained[places] = self.imagined[places] = 0.0
            lost = max(0, self.size + count - self.capacity)
            self.oldest, self.size = (self.oldest + lost) % self.capacity, self.size + count - lost

    def scores(self, length: int, imagine: bool = False) -> Tensor:
        """Logs of p, up to a constant, of where sequences of a length may begin, from the oldest step on.

        Raises:
            ValueError: where none can.
        """
        starts = self.size + 1 - length
        if starts < 1:
            raise ValueError(f"{self.size} steps were played, a sequence takes {length}: play more of them first")
        places = (self.oldest + torch.arange(starts)) % self.capacity
        n, b = self.trained[places], self.imagined[places] / self.share
        scores = n - self.alpha * b - self.beta * (n - b).clamp_min(0) if imagine else -n
        return scores / self.tau

    def sample(
        self, count: int, length: int, *, imagine: bool = False, generator: torch.Generator | None = None
    ) -> Played:
        """Sequences (count, length, ...), and they are counted.

        Raises:
            ValueError: where fewer can begin.
        """
        scores = self.scores(length, imagine)
        if len(scores) < count:
            raise ValueError(
                f"{count} sequences of {length} steps begin at different ones of {self.size}: play more of them first, "
                "or draw fewer"
            )
        noise = torch.rand(len(scores), generator=generator, dtype=torch.float64)
        drawn = (scores - (-noise.log()).log()).topk(count).indices  # by Gumbel: without replacement
        starts = (self.oldest + drawn) % self.capacity
        (self.imagined if imagine else self.trained)[starts] += 1
        places = (starts[:, None] + torch.arange(length)) % self.capacity
        assert self.played is not None
        found = Played(*(part[places] for part in self.played))
        found.firsts[:, 0] = True  # what was before is not seen
        return found

    def state_dict(self) -> dict[str, Any]:
        """All of it, in tensors and numbers."""
        places = (self.oldest + torch.arange(self.size)) % self.capacity
        parts = {} if self.played is None else {k: v[places] for k, v in self.played._asdict().items()}
        return {"played": parts, "trained": self.trained[places], "imagined": self.imagined[places]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What another one of this capacity held."""
        self.played, self.oldest, self.size = None, 0, 0
        if state["played"]:
            self.add(Played(**state["played"]))
        for counts, found in ((self.trained, state["trained"]), (self.imagined, state["imagined"])):
            counts.zero_()
            counts[: len(found)] = found

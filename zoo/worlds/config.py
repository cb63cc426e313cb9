"""Options of Drama, and what may be its memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from zoo.config import require_positive, require_ranges
from zoo.layers import Mamba2, Mixer
from zoo.registry import nearest
from zoo.worlds.gru import GRU

FRAMES = 12  # of a sample that says what the model reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class DramaConfig:
    """Options of Drama."""

    num_actions: int
    """Actions to choose from."""
    in_chans: int = 3
    """Channels of a frame."""
    img_size: int = 64
    """Height and width of a frame."""
    widths: tuple[int, ...] = (16, 32, 48, 64, 64)
    """Channels of the encoder's convolutions; all but the first halve the image."""
    kernel_size: int = 5
    """Side of the convolutions' kernels."""
    groups: int = 32
    """Groups of a frame's code."""
    classes: int = 32
    """Classes of a group, one of which holds."""
    mix_rate: float = 0.01
    """Share of the uniform distribution in that of the classes."""
    memory: str = "mamba2"
    """What remembers: "mamba2" or "gru"."""
    dim: int = 512
    """Width of the memory."""
    depth: int = 2
    """Blocks of the memory."""
    d_state: int = 16
    """State of a channel of Mamba-2."""
    head_dim: int = 64
    """Channels of a head of Mamba-2."""
    hidden_dim: int = 256
    """Hidden units of what foretells rewards and ends."""
    num_bins: int = 255
    """Bins of rewards and values."""
    bin_limit: float = 20.0
    """Last bin, on a logarithmic scale."""
    free_nats: float = 1.0
    """Divergence of codes from what was expected that costs nothing."""
    reset_at_ends: bool = True
    """The memory of a sequence starts anew with each episode. As released it goes on, and the first frame of the next
    episode is to be foretold."""
    agent: bool = False
    """There is an actor and a critic as well."""
    actor_dim: int = 256
    """Hidden units of the actor."""
    critic_dim: int = 512
    """Hidden units of the critic."""
    agent_depth: int = 3
    """Hidden layers of either."""
    horizon: int = 16
    """Steps that are imagined to learn from."""
    gamma: float = 0.985
    """Discount a step."""
    lam: float = 0.95
    """How far returns are as imagined, in place of values."""
    entropy_weight: float = 3e-4
    """Of the policy's entropy in the actor's loss."""
    environment: str | None = None
    """Gymnasium's name of where it learnt."""
    repeat: int = 1
    """Steps there that an action is repeated for."""

    def __post_init__(self):
        require_positive(self, "num_actions", "in_chans", "img_size", "groups", "dim", "depth", "d_state", "head_dim")
        require_positive(self, "hidden_dim", "actor_dim", "critic_dim", "agent_depth", "horizon", "repeat")
        require_ranges(self)
        if not self.widths or min(self.widths) < 1 or self.img_size % 2 ** (len(self.widths) - 1):
            raise ValueError(
                f"widths must be positive, and img_size divisible by 2 for each but the first, got widths "
                f"{self.widths} and img_size {self.img_size}"
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        if self.memory not in MEMORIES:
            raise ValueError(f"unknown memory {self.memory!r}{nearest(self.memory, MEMORIES)}, of {list(MEMORIES)}")
        if min(self.classes, self.num_bins) < 2:
            raise ValueError(f"classes and num_bins must be 2 or more, got {self.classes} and {self.num_bins}")
        if not 0 < self.gamma <= 1 or not 0 <= self.lam <= 1 or not 0 <= self.mix_rate < 1:
            raise ValueError(
                f"gamma must be in (0, 1], lam in [0, 1] and mix_rate in [0, 1), got {self.gamma}, {self.lam} and "
                f"{self.mix_rate}"
            )
        if not self.bin_limit > 0 or not self.free_nats >= 0:
            raise ValueError(
                f"bin_limit must be above 0 and free_nats at least 0, got {self.bin_limit}, {self.free_nats}"
            )

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one sample: (frames, channels, height, width)."""
        return FRAMES, self.in_chans, self.img_size, self.img_size

    @property
    def code_dim(self) -> int:
        """Numbers of a code."""
        return self.groups * self.classes


MEMORIES: dict[str, Callable[[DramaConfig], Mixer]] = {
    "mamba2": lambda c: Mamba2(c.dim, d_state=c.d_state, head_dim=c.head_dim),
    "gru": lambda c: GRU(c.dim),
}

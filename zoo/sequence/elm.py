"""ELM: one expressive leaky memory neuron that reads a series, such as spikes, and a linear read-out of its memories.

Paper: Spieler et al., "The Expressive Leaky Memory Neuron: an Efficient and Expressive Phenomenological Neuron Model
Can Solve Long-Horizon Tasks", arXiv 2306.16922. ``elm_1`` to ``elm_100``, by their memories, are the sizes that the
authors released for NeuronIO: at every millisecond the logit of a spike and a tenth of the soma's voltage (with the
mean that their code subtracts) from 1278 synapses, excitatory ones first. ``elm_shd`` and ``elm_shd_adding`` are those
of their notebook for the Spiking Heidelberg Digits: 700 channels in bins of 10 ms, classified at the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import require_positive, require_ranges
from zoo.layers import ExpressiveLeakyMemory, recompute
from zoo.layers.ssm import LeakyMemoryState
from zoo.registry import Paper, register_model

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {  # memories (B, T, dim) -> what is read out
    "last": lambda x: x[:, -1],
    "avg": lambda x: x.mean(1),
    "none": lambda x: x,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ELMConfig:
    """Options of ELM; times are in one unit, milliseconds in all sizes."""

    in_features: int
    """Channels of the series."""
    num_classes: int
    """Outputs, 0 for no read-out."""
    dim: int
    """Memories, d_m."""
    global_pool: str = "last"
    """What is read out: the "last" step, the mean ("avg"), or every step ("none")."""
    num_branches: int | None = None
    """Branches; one for each channel when None."""
    per_branch: int = 1
    """Synapses of a branch."""
    overlap: bool = False
    """Branches share synapses with their neighbours, and the two halves of the channels alternate."""
    hidden_dim: int | None = None
    """Hidden units of the network that writes to the memories; 2 dim when None."""
    activation: str = "relu"
    """Of the hidden units, "relu" or "silu"."""
    version: int = 2
    """Gain of what is written: lambda (1 - kappa), 1, or 1 - kappa^lambda, 2."""
    strength: float = 5.0
    """The gain's lambda."""
    tau_branch: float = 5.0
    """Time constant of the branches' traces."""
    tau_min: float = 1.0
    """Shortest time constant of a memory."""
    tau_max: float = 1000.0
    """Longest time constant of a memory."""
    learn_tau: bool = False
    """The memories' time constants are learnt."""
    dt: float = 1.0
    """Length of a step."""
    input_drop_rate: float = 0.0
    """Dropout of the series' values; the authors drop half of SHD's, without scaling the rest, in tests too."""

    def __post_init__(self):
        require_positive(self, "in_features", "dim", "num_branches", "per_branch", "hidden_dim")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {self.num_classes}")
        if self.activation not in ("relu", "silu"):
            raise ValueError(f"activation must be 'relu' or 'silu', got {self.activation!r}")
        require_ranges(self)
        check_pooling(self.global_pool)


class ELM(nn.Module):
    """Series (B, T, in_features) -> outputs of the last step (B, num_classes), or as ``global_pool`` says."""

    def __init__(self, config: ELMConfig):
        super().__init__()
        self.config = c = config
        self.num_features = c.dim
        self.grad_checkpointing = False
        self.neuron = ExpressiveLeakyMemory(
            c.in_features, c.dim, c.num_branches, c.per_branch, c.overlap, c.hidden_dim, c.activation, c.version,
            c.strength, c.tau_branch, c.tau_min, c.tau_max, c.learn_tau, c.dt,
        )  # fmt: skip
        self.head = self._build_head(c.num_classes)

    def forward(self, x: Tensor, state: LeakyMemoryState | None = None) -> Tensor:
        """x (B, T, in_features) -> outputs; with a state from ``init_state`` the series goes on where it ended."""
        return self.forward_head(self.forward_features(x, state))

    def forward_features(self, x: Tensor, state: LeakyMemoryState | None = None) -> Tensor:
        """x (B, T, in_features) -> the memories after every step, (B, T, dim).

        Raises:
            ValueError: for a series of another shape or dtype.
        """
        channels = self.config.in_features
        if x.dim() != 3 or x.shape[2] != channels or not x.shape[1] or not x.is_floating_point():
            raise ValueError(
                f"a series must be (B, T, {channels}) of a floating dtype with T >= 1, got {tuple(x.shape)} {x.dtype}"
            )
        x = F.dropout(x, self.config.input_drop_rate, self.training)
        if self.grad_checkpointing and self.training and state is None:
            return recompute(self.neuron, x)
        return self.neuron(x, state)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Memories (B, T, dim), pooled and, unless ``pre_logits``, read out."""
        x = POOLINGS[self.config.global_pool](x)
        return x if pre_logits else self.head(x)

    def init_state(
        self,
        batch_size: int,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LeakyMemoryState:
        """The state before the first step; its size does not depend on ``max_length``."""
        return self.neuron.init_state(batch_size, max_length, device, dtype)

    def state_size(self, length: int) -> int:
        """Numbers the state holds for one series after ``length`` steps."""
        return self.neuron.state_size(length)

    @property
    def num_classes(self) -> int:
        """Outputs of the present read-out, 0 for none."""
        return self.config.num_classes

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh read-out of ``num_classes``, none for 0; ``global_pool`` None keeps the present pooling.

        Raises:
            ValueError: for an unknown pooling.
        """
        pooling = check_pooling(global_pool or self.config.global_pool)
        self.config = dataclasses.replace(self.config, num_classes=num_classes, global_pool=pooling)
        self.head = self._build_head(num_classes).to(self.neuron.W_out)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the neuron again in the backward pass instead of keeping what it computed."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone, besides biases and norms: of synapses, which
        only their sign closes, and learnt time constants."""
        return {"neuron.synapses.weight", *(f"neuron.{name}" for name in self.neuron.float32_parameters)}

    def _build_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.config.dim, num_classes) if num_classes else nn.Identity()


def check_pooling(name: str) -> str:
    """``name``, where it is a pooling; else a ValueError."""
    if name not in POOLINGS:
        raise ValueError(f"global_pool must be one of {', '.join(POOLINGS)}, got {name!r}")
    return name


PAPER = Paper("The Expressive Leaky Memory Neuron", "2306.16922", 2023)
_register = partial(register_model, ELM, task="sequence-classification", family="elm", paper=PAPER)
_released = partial(register_model, ELM, task="sequence-regression", family="elm", paper=PAPER)()
_neuronio = partial(
    ELMConfig, in_features=1278, num_classes=2, global_pool="none", num_branches=45, per_branch=100, overlap=True,
    version=1, tau_max=150.0,
)  # fmt: skip
_shd = partial(ELMConfig, in_features=700, dim=100, version=1, tau_max=500.0, dt=10.0, input_drop_rate=0.5)


@_register()
def elm_nano():
    return ELMConfig(in_features=32, num_classes=19, dim=32, tau_max=500.0, dt=10.0)


@_register()
def elm_shd():
    return _shd(num_classes=20)


@_register()
def elm_shd_adding():
    return _shd(num_classes=19)


@_released
def elm_1():
    return _neuronio(dim=1)


@_released
def elm_2():
    return _neuronio(dim=2)


@_released
def elm_3():
    return _neuronio(dim=3)


@_released
def elm_5():
    return _neuronio(dim=5)


@_released
def elm_7():
    return _neuronio(dim=7)


@_released
def elm_10():
    return _neuronio(dim=10)


@_released
def elm_15():
    return _neuronio(dim=15)


@_released
def elm_20():
    return _neuronio(dim=20)


@_released
def elm_25():
    return _neuronio(dim=25)


@_released
def elm_30():
    return _neuronio(dim=30)


@_released
def elm_40():
    return _neuronio(dim=40)


@_released
def elm_50():
    return _neuronio(dim=50)


@_released
def elm_75():
    return _neuronio(dim=75)


@_released
def elm_100():
    return _neuronio(dim=100)

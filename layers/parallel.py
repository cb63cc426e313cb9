"""Mixers side by side on the same input."""

from __future__ import annotations

from torch import Tensor

from zoo.layers.mixer import Mixer
from zoo.layers.states import JointState


class ParallelMixers(Mixer):
    """y = sum over i of output_scales[i] * mixer_i(input_scales[i] * x): attention and state-space heads in parallel.

    Args:
        mixers: name -> mixer, all of one width.
        input_scales, output_scales: a constant for each.

    Paper: Zuo et al., "Falcon-H1", arXiv 2507.22448, section 2.
    """

    def __init__(self, mixers: dict[str, Mixer], input_scales: tuple[float, ...], output_scales: tuple[float, ...]):
        super().__init__()
        if not len(mixers) == len(input_scales) == len(output_scales):
            raise ValueError(
                f"give one input and one output scale for each of the {len(mixers)} mixers, got {len(input_scales)} "
                f"and {len(output_scales)}"
            )
        self.names, self.input_scales, self.output_scales = tuple(mixers), input_scales, output_scales
        for name, mixer in mixers.items():
            self.add_module(name, mixer)

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers, in order."""
        return [getattr(self, name) for name in self.names]

    def forward(self, x: Tensor, state: JointState | None = None, *, seq_idx: Tensor | None = None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim)."""
        states = [None] * len(self.names) if state is None else state.parts
        return sum(  # type: ignore[return-value]
            after * mixer(before * x, part, seq_idx=seq_idx)
            for mixer, part, before, after in zip(
                self.mixers, states, self.input_scales, self.output_scales, strict=True
            )
        )

    def init_state(self, batch_size, max_length=None, device=None, dtype=None) -> JointState:
        """The states of all mixers."""
        return JointState(tuple(m.init_state(batch_size, max_length, device, dtype) for m in self.mixers))

    def state_size(self, length: int) -> int:
        """The sum over the mixers."""
        return sum(mixer.state_size(length) for mixer in self.mixers)

"""The step of a language model as a program of C: what it is written from, and when it is run."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from zoo.layers import ModelState
from zoo.layers.step import Stepper, Undescribed, Value, Writer


class StepsAsProgram(nn.Module):
    """What a language model adds to its layers' descriptions (``zoo.layers.step``): blocks, last norm, head.

    Attributes:
        stepper: runs the blocks and the head on one token, within ``layers.step.programmed``.
    """

    straight: ClassVar[bool]
    blocks: nn.ModuleList
    norm: nn.Module
    head: nn.Linear
    exits: Any
    norm_factor: float
    softcap: float | None
    stepper: Stepper | None = None

    def step_blocks(self, x: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> Tensor | None:
        """x (B, 1, dim) through all blocks by a program, where there is one for it."""
        stepper = self.stepper  # another thread may end using it
        if stepper is None or state is None or not self._steps_plainly(seq_idx):
            return None
        return stepper(x, state)

    def is_step(self, tokens: Tensor, state: ModelState | None, seq_idx: Tensor | None) -> bool:
        """Whether a program from the embedding to the head may do; what policies are told of is not in one."""
        return state is not None and tokens.shape[1] == 1 and not state.governed and self._steps_plainly(seq_idx)

    @property
    def writes_steps(self) -> bool:
        """Whether a program can be made of a step."""
        return self.straight or type(self).write_blocks is not StepsAsProgram.write_blocks

    def write_blocks(self, p: Writer, x: Value) -> None:
        """What the blocks, which change x (rows, dim), add to a program of steps; each mixer's state is announced."""
        for block in self.blocks:
            p.again()
            p.next_state()
            p.call(block, x)

    def read_step(self, p: Writer, x: Value) -> Value:
        """What ``read_out`` adds to a program of steps."""
        if type(self).forward_norm is not StepsAsProgram.forward_norm:
            raise Undescribed(f"the norm before the head of {type(self).__name__}")
        return self.read_stream(p, x)

    def read_stream(self, p: Writer, x: Value) -> Value:
        """The same of x (rows, dim), of which the norm before the head is all that ``forward_norm`` computes."""
        p.place(self)
        logits = p.call(self.head, p.times(p.call(self.norm, x), self.norm_factor))
        return logits if self.softcap is None else p.capped(logits, self.softcap)

    def forward_norm(self, x: Tensor) -> Tensor:
        """(B, T, dim) as the head reads it."""
        x = self.norm(x)
        return x if self.norm_factor == 1 else x * self.norm_factor

    def _steps_plainly(self, seq_idx: Tensor | None) -> bool:
        return seq_idx is None and self.exits is None and self.writes_steps

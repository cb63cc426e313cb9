"""What blocks add is taken again over steps of a sampler: EfficientVLA's action head."""

from __future__ import annotations

import dataclasses

from zoo.generative.adaptive import AdaptiveBlock
from zoo.generative.diffusion import DiffusionModel, Shortened
from zoo.generative.streamlined import Reused, StepRehash


@dataclasses.dataclass(frozen=True)
class FeatureReuse(StepRehash):
    r"""A shortcut of ``DiffusionModel.sample``: attention and MLPs are computed in every n-th step, from the first on,
    and the steps between take what they made then.

    .. math:: x = x + g_1(t) \, a_{t_0}, \quad x = x + g_2(t) \, m_{t_0}, \quad t_0 = n \lfloor t / n \rfloor

    for steps t, a and m the outputs of attention and MLP; the residual stream and the gates are those of the step. Of
    T steps ceil(T / n) compute everything.

    Attributes:
        every: n; 1 is the plain sampler bit for bit.
        first: steps that compute everything before t is counted from 0.
        parts: which outputs are taken again, "attn" and "mlp".

    Raises:
        ValueError: for an n below 1, a negative number of steps, or other parts.

    Paper: Yang et al., "EfficientVLA", arXiv 2506.10100: a diffusion transformer that draws actions, n = 5.
    """

    every: int = 5
    first: int = 0
    parts: tuple[str, ...] = ("attn", "mlp")

    def __post_init__(self):
        super().__post_init__()
        if not self.parts or not {*self.parts} <= {"attn", "mlp"}:
            raise ValueError(f"parts must be some of attn and mlp, got {self.parts}")

    def begin(self, model: DiffusionModel, steps: int) -> Shortened:
        """As of ``Shortcut``: a model of adaptive blocks, and steps that there are."""
        self.check_steps(steps)
        blocks = [module for module in model.modules() if isinstance(module, AdaptiveBlock)]
        if not blocks:
            raise ValueError(f"features of adaptive blocks are taken again, got {type(model).__name__}: take a DiT")
        return Reused(self, [getattr(block, part) for block in blocks for part in self.parts])

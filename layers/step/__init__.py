"""A decoding step of a stack of blocks as one program of C: what each layer adds to it, and when it may run.

A layer says here what it computes for one token, by its exact type: a subclass, a hook, an adapter or anything else in
a layer's place is unknown, and its model then steps as always, which is also the reference. The program is made at the
first step and anew where a tensor was written to or a module replaced.
"""

from zoo.layers.step import (  # noqa: F401  (what they describe)
    attention,
    delta_rules,
    latent,
    linear_attention,
    linears,
    recurrent,
    state_spaces,
)
from zoo.layers.step.attention import attend_step
from zoo.layers.step.feed_forward import moe_step, swiglu_step
from zoo.layers.step.linears import sequential_step
from zoo.layers.step.stepper import Stepper, obstacle, programmed
from zoo.layers.step.writer import Undescribed, Value, Writer, describes

__all__ = [
    "Stepper",
    "Undescribed",
    "Value",
    "Writer",
    "attend_step",
    "describes",
    "moe_step",
    "obstacle",
    "programmed",
    "sequential_step",
    "swiglu_step",
]

"""Speculative decoding: a draft says the next tokens, the model reads them all at once and keeps those of its own law.

A draft is an option of ``zoo.generate`` and ``zoo.stream``: ``draft=small_model``, or with its options
``draft=zoo.decoding.ModelDraft(small_model, length=6)``.
"""

from zoo.decoding.accept import accept, draw
from zoo.decoding.draft import Counts, Draft, as_draft
from zoo.decoding.drafting import Drafting
from zoo.decoding.early_exit import DynamicExit, EarlyExit, tokens_per_block
from zoo.decoding.micro_steps import MicroSteps
from zoo.decoding.model import ModelDraft
from zoo.decoding.multi_token import MultiToken
from zoo.decoding.reader import Reader

__all__ = [
    "Counts",
    "Draft",
    "Drafting",
    "DynamicExit",
    "EarlyExit",
    "MicroSteps",
    "ModelDraft",
    "MultiToken",
    "Reader",
    "accept",
    "as_draft",
    "draw",
    "tokens_per_block",
]

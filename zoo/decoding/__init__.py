"""Speculative decoding: a draft says the next tokens, the model reads them all at once and keeps those of its own law.

A draft is an option of ``zoo.generate`` and ``zoo.stream``: ``draft=small_model``, or with its options
``draft=zoo.decoding.ModelDraft(small_model, length=6)``.
"""

from zoo.decoding.accept import accept, accept_one_of, draw
from zoo.decoding.draft import Counts, Draft, as_draft
from zoo.decoding.draft_layer import AddedDraftLayer, DraftLayer, add_draft_layer
from zoo.decoding.drafting import Drafting, Rounds
from zoo.decoding.early_exit import DynamicExit, EarlyExit, tokens_per_block
from zoo.decoding.longspec import LongSpec
from zoo.decoding.micro_steps import MicroSteps
from zoo.decoding.model import ModelDraft
from zoo.decoding.multi_token import MultiToken
from zoo.decoding.rapid import Rapid, transferred
from zoo.decoding.reader import Reader
from zoo.decoding.retrieval import shortened
from zoo.decoding.specpc import SpecPC
from zoo.decoding.tim import TIM
from zoo.decoding.tree import TreeDraft, TreeDrafting

__all__ = [
    "TIM",
    "AddedDraftLayer",
    "Counts",
    "Draft",
    "DraftLayer",
    "Drafting",
    "DynamicExit",
    "EarlyExit",
    "LongSpec",
    "MicroSteps",
    "ModelDraft",
    "MultiToken",
    "Rapid",
    "Reader",
    "Rounds",
    "SpecPC",
    "TreeDraft",
    "TreeDrafting",
    "accept",
    "accept_one_of",
    "add_draft_layer",
    "as_draft",
    "draw",
    "shortened",
    "tokens_per_block",
    "transferred",
]

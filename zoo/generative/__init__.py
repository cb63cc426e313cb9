"""Models that make images: one file a family."""

from zoo.generative.collaborative import Collaboration
from zoo.generative.diffusion import DiffusionConfig, DiffusionModel
from zoo.generative.dit import DiT, DiTConfig
from zoo.generative.lookup_free import GroupedLookupFree
from zoo.generative.next_scale import NextScale, NextScaleConfig
from zoo.generative.pictures import draw, picture, pixels, psnr, read
from zoo.generative.reordering import ReorderedAttention, reorder_attention
from zoo.generative.scale_kv import ScaleKV, selectivity
from zoo.generative.unet import UNet, UNetConfig
from zoo.generative.wetok import Scales, WeTok, WeTokConfig, generative

__all__ = [
    "Collaboration",
    "DiT",
    "DiTConfig",
    "DiffusionConfig",
    "DiffusionModel",
    "GroupedLookupFree",
    "NextScale",
    "NextScaleConfig",
    "ReorderedAttention",
    "ScaleKV",
    "Scales",
    "UNet",
    "UNetConfig",
    "WeTok",
    "WeTokConfig",
    "draw",
    "generative",
    "picture",
    "pixels",
    "psnr",
    "read",
    "reorder_attention",
    "selectivity",
]

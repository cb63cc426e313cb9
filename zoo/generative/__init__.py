"""Models that make images and clips: one file a family."""

from zoo.generative.clips import write_gif
from zoo.generative.cmd import CMD, CMDConfig
from zoo.generative.collaborative import Collaboration
from zoo.generative.diffusion import DiffusionConfig, DiffusionModel, Shortcut
from zoo.generative.dit import DiT, DiTConfig
from zoo.generative.feature_reuse import FeatureReuse
from zoo.generative.frechet import frechet
from zoo.generative.lookup_free import GroupedLookupFree
from zoo.generative.motion import MotionDiT, MotionDiTConfig
from zoo.generative.next_scale import NextScale, NextScaleConfig
from zoo.generative.on_device_sora import OnDeviceSora, merged_frames
from zoo.generative.pictures import draw, picture, pixels, psnr, read
from zoo.generative.reordering import ReorderedAttention, reorder_attention
from zoo.generative.scale_kv import ScaleKV, selectivity
from zoo.generative.streamlined import StepRehash, sliced
from zoo.generative.unet import UNet, UNetConfig
from zoo.generative.video import VideoDiT, VideoDiTConfig
from zoo.generative.wetok import Scales, WeTok, WeTokConfig, generative

__all__ = [
    "CMD",
    "CMDConfig",
    "Collaboration",
    "DiT",
    "DiTConfig",
    "DiffusionConfig",
    "DiffusionModel",
    "FeatureReuse",
    "GroupedLookupFree",
    "MotionDiT",
    "MotionDiTConfig",
    "NextScale",
    "NextScaleConfig",
    "OnDeviceSora",
    "ReorderedAttention",
    "ScaleKV",
    "Scales",
    "Shortcut",
    "StepRehash",
    "UNet",
    "UNetConfig",
    "VideoDiT",
    "VideoDiTConfig",
    "WeTok",
    "WeTokConfig",
    "draw",
    "frechet",
    "generative",
    "merged_frames",
    "picture",
    "pixels",
    "psnr",
    "read",
    "reorder_attention",
    "selectivity",
    "sliced",
    "write_gif",
]

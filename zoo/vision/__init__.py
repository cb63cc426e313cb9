"""Vision models: one file a family."""

from zoo.vision.base import VisionConfig, VisionModel
from zoo.vision.efficientvit import EfficientViT, EfficientViTConfig
from zoo.vision.features import FeatureInfo, FeatureNet
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel
from zoo.vision.m3vit import M3ViT, M3ViTConfig
from zoo.vision.s4 import S4Pixel, S4PixelConfig
from zoo.vision.shvit import SHViT, SHViTConfig
from zoo.vision.vim import Vim, VimConfig
from zoo.vision.vit import ViT, ViTConfig
from zoo.vision.vovnet import VoVNet, VoVNetConfig

__all__ = [
    "EfficientViT",
    "EfficientViTConfig",
    "FeatureInfo",
    "FeatureNet",
    "HierarchicalConfig",
    "HierarchicalModel",
    "M3ViT",
    "M3ViTConfig",
    "S4Pixel",
    "S4PixelConfig",
    "SHViT",
    "SHViTConfig",
    "ViT",
    "ViTConfig",
    "Vim",
    "VimConfig",
    "VisionConfig",
    "VisionModel",
    "VoVNet",
    "VoVNetConfig",
]

"""Vision models: one file a family."""

from zoo.vision.axial import AxialConfig, AxialTransformer
from zoo.vision.base import VisionConfig, VisionModel
from zoo.vision.block_fusion import BlockTraffic, TiledBlock, block_traffic, fuse_blocks
from zoo.vision.convfirst import ConvFirstConfig, ConvFirstNet
from zoo.vision.dense import Pyramid, UperNet
from zoo.vision.efficientvit import EfficientViT, EfficientViTConfig
from zoo.vision.features import FeatureInfo, FeatureNet
from zoo.vision.hierarchical import HierarchicalConfig, HierarchicalModel
from zoo.vision.lightcnn import LightCNN, LightCNNConfig
from zoo.vision.longconv import LongConvPixel, LongConvPixelConfig
from zoo.vision.m3vit import M3ViT, M3ViTConfig
from zoo.vision.mambavision import MambaVision, MambaVisionConfig
from zoo.vision.mcunet import MCUNet, MCUNetConfig
from zoo.vision.patches import MemoryPlan, PatchedModel, best_plan, plan
from zoo.vision.pcdarts import PCDARTS, PCDARTSConfig
from zoo.vision.revunet3d import RevUNet3d, RevUNet3dConfig
from zoo.vision.s4 import S4Pixel, S4PixelConfig
from zoo.vision.seqboat import SeqBoatPixel, SeqBoatPixelConfig
from zoo.vision.shvit import SHViT, SHViTConfig
from zoo.vision.simplenet import SimpleNet, SimpleNetConfig
from zoo.vision.spiking_resnet import SpikingResNet, SpikingResNetConfig
from zoo.vision.vim import Vim, VimConfig
from zoo.vision.vit import ViT, ViTConfig
from zoo.vision.vmamba import VMamba, VMambaConfig
from zoo.vision.vovnet import VoVNet, VoVNetConfig

__all__ = [
    "PCDARTS",
    "AxialConfig",
    "AxialTransformer",
    "BlockTraffic",
    "ConvFirstConfig",
    "ConvFirstNet",
    "EfficientViT",
    "EfficientViTConfig",
    "FeatureInfo",
    "FeatureNet",
    "HierarchicalConfig",
    "HierarchicalModel",
    "LightCNN",
    "LightCNNConfig",
    "LongConvPixel",
    "LongConvPixelConfig",
    "M3ViT",
    "M3ViTConfig",
    "MCUNet",
    "MCUNetConfig",
    "MambaVision",
    "MambaVisionConfig",
    "MemoryPlan",
    "PCDARTSConfig",
    "PatchedModel",
    "Pyramid",
    "RevUNet3d",
    "RevUNet3dConfig",
    "S4Pixel",
    "S4PixelConfig",
    "SHViT",
    "SHViTConfig",
    "SeqBoatPixel",
    "SeqBoatPixelConfig",
    "SimpleNet",
    "SimpleNetConfig",
    "SpikingResNet",
    "SpikingResNetConfig",
    "TiledBlock",
    "UperNet",
    "VMamba",
    "VMambaConfig",
    "ViT",
    "ViTConfig",
    "Vim",
    "VimConfig",
    "VisionConfig",
    "VisionModel",
    "VoVNet",
    "VoVNetConfig",
    "best_plan",
    "block_traffic",
    "fuse_blocks",
    "plan",
]

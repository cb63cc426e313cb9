"""Models that read images and texts together: one file a family, one a method of reading fewer tokens of an image."""

from zoo.layers.cache.dynamic_llava import DynamicLLaVA
from zoo.layers.cache.efficient_vla import EfficientVLA
from zoo.vision_language.adem_vl import AdemVL, AdemVLConfig
from zoo.vision_language.answers import answer, stream
from zoo.vision_language.dynamic_llava import ContextSparsity, add_predictors, annealed, sparsified_loss
from zoo.vision_language.llava import Llava, LlavaConfig
from zoo.vision_language.longvlm import LongVLM
from zoo.vision_language.m2_encoder import M2Encoder, M2EncoderConfig
from zoo.vision_language.prompts import IMAGE, encode_prompt, prepare_images
from zoo.vision_language.reduction import Reduction, Seen
from zoo.vision_language.video_scan import VideoScan
from zoo.vision_language.vtc_cls import VTCCLS

__all__ = [
    "IMAGE",
    "VTCCLS",
    "AdemVL",
    "AdemVLConfig",
    "ContextSparsity",
    "DynamicLLaVA",
    "EfficientVLA",
    "Llava",
    "LlavaConfig",
    "LongVLM",
    "M2Encoder",
    "M2EncoderConfig",
    "Reduction",
    "Seen",
    "VideoScan",
    "add_predictors",
    "annealed",
    "answer",
    "encode_prompt",
    "prepare_images",
    "sparsified_loss",
    "stream",
]

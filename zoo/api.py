"""The public names, which `import zoo` brings; they are imported when the first of them is asked for."""

import zoo.cache as cache
import zoo.decoding as decoding
import zoo.steering as steering
from zoo.adapt import adapt, merge_adapter, save_adapter
from zoo.aware import noisy_weights, round_weights, settle
from zoo.chat import Chat
from zoo.convert import convert
from zoo.emulation import emulate
from zoo.exits import add_exits, calibrate_exits, exit_costs
from zoo.expert_widths import expert_widths
from zoo.export import export_onnx, export_program
from zoo.extend_context import extend_context
from zoo.factorize import factorize
from zoo.factory import ModelInfo, create_model, load_weights, model_info
from zoo.fetching import prefetch
from zoo.generate import generate, prepack, stream
from zoo.heads import keep_heads
from zoo.language.rows import batch_invariant
from zoo.latent import latent_experts
from zoo.layer_cast import layer_cast
from zoo.layer_pruning import prune_layers
from zoo.layers.report import activity, after_step, auxiliary_losses
from zoo.linearize import linearize
from zoo.masks import mask_weights
from zoo.offload import offload
from zoo.parallel import parallelize
from zoo.perplexity import TextScore, score_text
from zoo.predict import predict, read_labels
from zoo.profile import profile
from zoo.quantize import quantize
from zoo.registry import Paper, list_families, list_models, register_model
from zoo.reversible import reversible
from zoo.reweaving import Rewoven, add_reweaving
from zoo.saving import save_model
from zoo.sharing import SharedModels
from zoo.sltrain import merge_sltrain, sltrain
from zoo.sparse_tuning import sparse_tuning
from zoo.sparsify import sparsify
from zoo.stability import deviation, lyapunov_exponents
from zoo.subnetworks import subnetwork
from zoo.text import load_tokenizer
from zoo.timm_registry import register_with_timm
from zoo.warmup import warmup

__all__ = [
    "Chat",
    "ModelInfo",
    "Paper",
    "Rewoven",
    "SharedModels",
    "TextScore",
    "activity",
    "adapt",
    "add_exits",
    "add_reweaving",
    "after_step",
    "auxiliary_losses",
    "batch_invariant",
    "cache",
    "calibrate_exits",
    "convert",
    "create_model",
    "decoding",
    "deviation",
    "emulate",
    "exit_costs",
    "expert_widths",
    "export_onnx",
    "export_program",
    "extend_context",
    "factorize",
    "generate",
    "keep_heads",
    "latent_experts",
    "layer_cast",
    "linearize",
    "list_families",
    "list_models",
    "load_tokenizer",
    "load_weights",
    "lyapunov_exponents",
    "mask_weights",
    "merge_adapter",
    "merge_sltrain",
    "model_info",
    "noisy_weights",
    "offload",
    "parallelize",
    "predict",
    "prefetch",
    "prepack",
    "profile",
    "prune_layers",
    "quantize",
    "read_labels",
    "register_model",
    "register_with_timm",
    "reversible",
    "round_weights",
    "save_adapter",
    "save_model",
    "score_text",
    "settle",
    "sltrain",
    "sparse_tuning",
    "sparsify",
    "steering",
    "stream",
    "subnetwork",
    "warmup",
]

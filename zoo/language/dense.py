"""Sizes of the published dense models, as options of the one transformer.

Sources: the config.json of each repository on the Hub. SmolLM3 has no paper: the one named is of its layers without
positions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.language.transformer import TransformerConfig, TransformerLanguageModel
from zoo.layers.attention import Llama3
from zoo.registry import Paper, register_model

_register = partial(register_model, TransformerLanguageModel, task="language", family="transformer")
_config = partial(TransformerConfig, tie_embeddings=False)

_llama2 = _register(paper=Paper("Llama 2: Open Foundation and Fine-Tuned Chat Models", "2307.09288", 2023))
_llama3 = _register(paper=Paper("The Llama 3 Herd of Models", "2407.21783", 2024))
_mistral = _register(paper=Paper("Mistral 7B", "2310.06825", 2023))
_qwen2_5 = _register(paper=Paper("Qwen2.5 Technical Report", "2412.15115", 2024))
_qwen3 = _register(paper=Paper("Qwen3 Technical Report", "2505.09388", 2025))
_smollm2 = _register(paper=Paper("SmolLM2: When Smol Goes Big", "2502.02737", 2025))
_smollm3 = _register(paper=Paper("Rope to Nope and Back Again: A New Hybrid Attention Strategy", "2501.18795", 2025))
_olmo2 = _register(paper=Paper("2 OLMo 2 Furious", "2501.00656", 2025))
_gemma2 = _register(paper=Paper("Gemma 2: Improving Open Language Models at a Practical Size", "2408.00118", 2024))
_gemma3 = _register(paper=Paper("Gemma 3 Technical Report", "2503.19786", 2025))

_LLAMA2 = partial(_config, vocab_size=32000, context_length=4096)
_LLAMA3 = partial(_config, vocab_size=128256, num_kv_heads=8, rope_base=500000.0, context_length=8192)
_LLAMA3_1 = partial(_LLAMA3, context_length=131072, rope_scaling=Llama3(8.0))
_LLAMA3_2 = partial(_LLAMA3, context_length=131072, rope_scaling=Llama3(32.0), tie_embeddings=True, mlp_dim=8192)
_MISTRAL = partial(
    _config, vocab_size=32000, dim=4096, depth=32, num_heads=32, num_kv_heads=8, mlp_dim=14336, context_length=32768
)
_QWEN2_5 = partial(
    _config, vocab_size=151936, qkv_bias=True, rope_base=1e6, norm_eps=1e-6, tie_embeddings=True, context_length=32768
)
_QWEN2_5_LARGE = partial(_QWEN2_5, vocab_size=152064, tie_embeddings=False)
_QWEN3 = partial(
    _config, vocab_size=151936, num_kv_heads=8, head_dim=128, qk_norm="head", rope_base=1e6, norm_eps=1e-6,
    context_length=40960,
)  # fmt: skip
_SMOLLM2 = partial(_config, vocab_size=49152, rope_base=100000.0, tie_embeddings=True, context_length=8192)
_OLMO2 = partial(
    _config, vocab_size=100352, qk_norm="joint", norm_order="after", rope_base=500000.0, norm_eps=1e-6,
    context_length=4096,
)  # fmt: skip


def _gemma(depth: int, dim: int, every: int, scalar: int = 256, **options: Any) -> TransformerConfig:
    """Gemma, one block of ``every`` without a window, the logits of attention over the root of ``scalar``."""
    return _config(
        dim=dim, depth=depth, full_layers=tuple(range(every - 1, depth, every)), norm_order="both", norm_offset=True,
        activation="gelu", attention_scale=scalar**-0.5, embedding_scale=dim**0.5, norm_eps=1e-6, tie_embeddings=True,
        **{"head_dim": 256, **options},
    )  # fmt: skip


_GEMMA2 = partial(
    _gemma, vocab_size=256000, every=2, window=4096, attention_softcap=50.0, logit_softcap=30.0, context_length=8192
)
_GEMMA3 = partial(_gemma, vocab_size=262144, every=6, qk_norm="head", rope_base=1e6, local_rope_base=10000.0)


@_llama2
def llama2_7b():
    return _LLAMA2(dim=4096, depth=32, num_heads=32, mlp_dim=11008)


@_llama2
def llama2_13b():
    return _LLAMA2(dim=5120, depth=40, num_heads=40, mlp_dim=13824)


@_llama2
def llama2_70b():
    return _LLAMA2(dim=8192, depth=80, num_heads=64, num_kv_heads=8, mlp_dim=28672)


@_llama3
def llama3_8b():
    return _LLAMA3(dim=4096, depth=32, num_heads=32, mlp_dim=14336)


@_llama3
def llama3_70b():
    return _LLAMA3(dim=8192, depth=80, num_heads=64, mlp_dim=28672)


@_llama3
def llama3_1_8b():
    return _LLAMA3_1(dim=4096, depth=32, num_heads=32, mlp_dim=14336)


@_llama3
def llama3_1_70b():
    return _LLAMA3_1(dim=8192, depth=80, num_heads=64, mlp_dim=28672)


@_llama3
def llama3_2_1b():
    return _LLAMA3_2(dim=2048, depth=16, num_heads=32)


@_llama3
def llama3_2_3b():
    return _LLAMA3_2(dim=3072, depth=28, num_heads=24)


@_mistral
def mistral_7b_v0_1():
    return _MISTRAL(window=4096)


@_mistral
def mistral_7b_v0_2():
    return _MISTRAL(rope_base=1e6)


@_mistral
def mistral_7b_v0_3():
    return _MISTRAL(rope_base=1e6, vocab_size=32768)


@_qwen2_5
def qwen2_5_0_5b():
    return _QWEN2_5(dim=896, depth=24, num_heads=14, num_kv_heads=2, mlp_dim=4864)


@_qwen2_5
def qwen2_5_1_5b():
    return _QWEN2_5(dim=1536, depth=28, num_heads=12, num_kv_heads=2, mlp_dim=8960)


@_qwen2_5
def qwen2_5_3b():
    return _QWEN2_5(dim=2048, depth=36, num_heads=16, num_kv_heads=2, mlp_dim=11008)


@_qwen2_5
def qwen2_5_7b():
    return _QWEN2_5_LARGE(dim=3584, depth=28, num_heads=28, num_kv_heads=4, mlp_dim=18944)


@_qwen2_5
def qwen2_5_14b():
    return _QWEN2_5_LARGE(dim=5120, depth=48, num_heads=40, num_kv_heads=8, mlp_dim=13824, norm_eps=1e-5)


@_qwen2_5
def qwen2_5_32b():
    return _QWEN2_5_LARGE(dim=5120, depth=64, num_heads=40, num_kv_heads=8, mlp_dim=27648, norm_eps=1e-5)


@_qwen3
def qwen3_0_6b():
    return _QWEN3(dim=1024, depth=28, num_heads=16, mlp_dim=3072, tie_embeddings=True)


@_qwen3
def qwen3_1_7b():
    return _QWEN3(dim=2048, depth=28, num_heads=16, mlp_dim=6144, tie_embeddings=True)


@_qwen3
def qwen3_4b():
    return _QWEN3(dim=2560, depth=36, num_heads=32, mlp_dim=9728, tie_embeddings=True)


@_qwen3
def qwen3_8b():
    return _QWEN3(dim=4096, depth=36, num_heads=32, mlp_dim=12288)


@_qwen3
def qwen3_14b():
    return _QWEN3(dim=5120, depth=40, num_heads=40, mlp_dim=17408)


@_qwen3
def qwen3_32b():
    return _QWEN3(dim=5120, depth=64, num_heads=64, mlp_dim=25600)


@_smollm2
def smollm2_135m():
    return _SMOLLM2(dim=576, depth=30, num_heads=9, num_kv_heads=3, mlp_dim=1536)


@_smollm2
def smollm2_360m():
    return _SMOLLM2(dim=960, depth=32, num_heads=15, num_kv_heads=5, mlp_dim=2560)


@_smollm2
def smollm2_1_7b():
    return _SMOLLM2(dim=2048, depth=24, num_heads=32, mlp_dim=8192, rope_base=130000.0)


@_smollm3
def smollm3_3b():
    return _config(
        vocab_size=128256, dim=2048, depth=36, num_heads=16, num_kv_heads=4, mlp_dim=11008, rope_base=5e6,
        norm_eps=1e-6, nope_layers=tuple(range(3, 36, 4)), tie_embeddings=True, context_length=65536,
    )  # fmt: skip


@_olmo2
def olmo2_1b():
    return _OLMO2(dim=2048, depth=16, num_heads=16, mlp_dim=8192)


@_olmo2
def olmo2_7b():
    return _OLMO2(dim=4096, depth=32, num_heads=32, mlp_dim=11008)


@_olmo2
def olmo2_13b():
    return _OLMO2(dim=5120, depth=40, num_heads=40, mlp_dim=13824)


@_olmo2
def olmo2_32b():
    return _OLMO2(dim=5120, depth=64, num_heads=40, num_kv_heads=8, mlp_dim=27648)


@_gemma2
def gemma2_2b():
    return _GEMMA2(26, 2304, num_heads=8, num_kv_heads=4, mlp_dim=9216)


@_gemma2
def gemma2_9b():
    return _GEMMA2(42, 3584, num_heads=16, num_kv_heads=8, mlp_dim=14336)


@_gemma2
def gemma2_27b():
    return _GEMMA2(46, 4608, num_heads=32, num_kv_heads=16, head_dim=128, mlp_dim=36864, scalar=144)


@_gemma3
def gemma3_270m():
    return _GEMMA3(18, 640, num_heads=4, num_kv_heads=1, mlp_dim=2048, window=512, context_length=32768)


@_gemma3
def gemma3_1b():
    return _GEMMA3(26, 1152, num_heads=4, num_kv_heads=1, mlp_dim=6912, window=512, context_length=32768)

"""What is remembered of a text: recurrences keep a state that does not grow, hybrids a cache of few layers."""

from __future__ import annotations

from typing import Any

from zoo.benchmarks.claims.declare import Found, claim
from zoo.benchmarks.claims.tools import on_meta

SHORT, LONG = 2**15, 2**20


def constant(family: str, model: str, paper: str, source: str, says: str = "") -> None:
    """Declare that the numbers a model keeps do not grow from 32 thousand to a million tokens."""

    def run() -> Found:
        built = on_meta(model)
        kept = {length: built.state_size(length) for length in (SHORT, LONG)}
        return Found(kept[LONG] / kept[SHORT], {"numbers after tokens": kept})

    run.__name__, run.__doc__ = (
        f"{family}_state",
        f"Numbers that {model} keeps after 2^20 tokens over those after 2^15.",
    )
    claim(
        family, paper, says=says or "What is kept of a text does not grow with its length.", source=source,
        evidence="cost", value="times as many numbers", at_least=1.0, at_most=1.0,
    )(run)  # fmt: skip


WINDOW = "Attention sees a window and a memory of fixed size, so what is kept does not grow with the text."
constant("mamba", "mamba_130m", "2312.00752", "section 1: no cache of earlier elements")
constant("mamba2", "mamba2_130m", "2405.21060", "section 2: constant state")
constant("s4", "s4_wikitext103", "2111.00396", "section 2: recurrent view")
constant("s4d", "s4d_wikitext103", "2206.11893", "section 3: recurrent view")
constant("deltanet", "deltanet_340m", "2406.06484", "section 2: a memory of fixed size")
constant("gated_deltanet", "gated_deltanet_1_3b", "2412.06464", "section 2: a memory of fixed size")
constant("gla", "gla_340m", "2312.06635", "section 2.1: a matrix-valued hidden state")
constant("retnet", "retnet_1_3b", "2307.08621", "abstract: O(1) inference")
constant("rwkv7", "rwkv7_1_5b", "2503.14456", "abstract: constant memory a token")
constant("xlstm", "xlstm_7b", "2503.13427", "abstract: constant memory over the length")
constant("xlstm1", "xlstm1_1_3b", "2405.04517", "section 2: constant memory")
constant("recurrent_gemma", "recurrentgemma_2b", "2404.07839", "section 1: a state of bounded size", WINDOW)
constant("based", "based_1_3b", "2402.18668", "abstract: a state of fixed size", WINDOW)
constant("lizard", "lizard_llama3_8b", "2507.09025", "abstract: constant memory", WINDOW)
constant("titans_lmm", "titans_lmm_340m", "2501.00663", "section 3: memory in the weights of a network")
constant("titans_mac", "titans_mac_340m", "2501.00663", "section 4.1: segments and a memory", WINDOW)
constant("titans_mag", "titans_mag_340m", "2501.00663", "section 4.2: a window and a memory", WINDOW)
constant("titans_mal", "titans_mal_340m", "2501.00663", "section 4.3: a window and a memory", WINDOW)


def grown(model: Any, length: int) -> int:
    """Numbers that a model keeps for another token, at this length."""
    return model.state_size(2 * length) // length - model.state_size(length) // length


@claim(
    "transformer", "2312.00752", says="A transformer keeps keys and values of all earlier tokens.",
    source="section 1: the whole context, as the cache of keys and values", evidence="cost",
    value="times as many numbers", at_least=32.0, at_most=32.0,
)  # fmt: skip
def transformer_cache() -> Found:
    """Numbers that transformer_1_3b keeps after 2^20 tokens over those after 2^15."""
    built = on_meta("transformer_1_3b")
    kept = {length: built.state_size(length) for length in (SHORT, LONG)}
    return Found(round(kept[LONG] / kept[SHORT], 3), {"numbers after tokens": kept})


@claim(
    "jamba", "2403.19887", says="At 256 thousand tokens the keys and values take 4 GB, where Mixtral's take 32 GB.",
    source="table 1", evidence="cost", value="GiB in 16 bits", at_least=3.5, at_most=4.5,
)  # fmt: skip
def jamba_cache() -> Found:
    """Numbers that jamba_v0_1 keeps for 2^18 tokens, of two bytes each; the recurrent state is among them."""
    sizes = {name: on_meta(name).state_size(2**18) * 2 / 2**30 for name in ("jamba_v0_1", "mixtral_8x7b")}
    return Found(sizes["jamba_v0_1"], {"GiB": sizes})


@claim(
    "deepseek", "2405.04434",
    says="Keys and values compressed into latent vectors take 93.3 % less than DeepSeek 67B's.",
    source="abstract and section 3.2.3: keys and values of 6 bits when deployed", evidence="cost",
    value="share saved", at_least=0.932, at_most=0.934,
)  # fmt: skip
def deepseek_cache() -> Found:
    """Numbers a token of deepseek_v2_236b, of 6 bits, against 95 layers with 8 heads of 128 for keys and values in
    16."""
    latent, heads = grown(on_meta("deepseek_v2_236b"), 4096), 95 * 2 * 8 * 128
    saved = {bits: 1 - latent * bits / (heads * 16) for bits in (16, 6)}
    return Found(saved[6], {"numbers a token": {"latent": latent, "heads": heads}, "saved, by bits": saved})


def share(
    family: str, model: str, paper: str, source: str, layers: int, a_token: int, says: str, at_most: float
) -> None:
    """Declare how much of what attention in every block would keep a hybrid keeps of a token.

    Args:
        layers: with a mixer.
        a_token: numbers that one layer of attention keeps.
    """

    def run() -> Found:
        kept = grown(on_meta(model), LONG)
        return Found(kept / (layers * a_token), {"numbers a token": kept, "with attention in all": layers * a_token})

    run.__name__ = f"{family}_cache"
    run.__doc__ = f"Numbers that {model} keeps of a token beyond 2^20, over {layers} layers of its attention."
    claim(
        family, paper, says=says, source=source, evidence="cost", value="share of the numbers", at_most=at_most
    )(run)  # fmt: skip


share(
    "kimi_linear", "kimi_linear_48b_a3b", "2510.26692", "abstract: up to 75 % less", 27, 512 + 64,
    "Three of four layers have a linear memory, which saves up to 75 % of the keys and values.", 0.26,
)  # fmt: skip
share(
    "qwen3_next", "qwen3_next_80b_a3b", "2412.06464", "Qwen3-Next's announcement: layers 3 to 1", 48, 2 * 2 * 256,
    "Three of four layers are gated delta rules, so a quarter of the keys and values is kept.", 0.25,
)  # fmt: skip
share(
    "nemotron_h", "nemotron_h_8b", "2504.03624", "section 2: about 8 % of the layers attend", 52, 2 * 8 * 128,
    "About 8 % of the layers attend, the others keep a state of fixed size.", 0.085,
)  # fmt: skip
share(
    "bamba", "bamba_9b", "2405.21060", "model card of ibm-ai-platform/Bamba-9B: 3 of 32 layers", 32, 2 * 8 * 128,
    "Three of 32 layers attend, so that the cache is a tenth.", 0.1,
)  # fmt: skip
share(
    "granite_hybrid", "granite4_h_small", "2405.21060", "IBM's announcement of Granite 4.0: over 70 % less memory", 40,
    2 * 8 * 128, "Nine of ten layers are Mamba-2: long contexts take over 70 % less memory.", 0.3,
)  # fmt: skip
share(
    "lfm2", "lfm2_1_2b", "2511.23404", "section 2: 10 short convolutions, 6 layers of attention", 16, 2 * 8 * 64,
    "Most layers are short convolutions, which keep a few steps of a text.", 0.375,
)  # fmt: skip
share(
    "minimax", "minimax_text_01", "2501.08313", "section 2: one softmax layer after seven linear ones", 80, 2 * 8 * 128,
    "Seven of eight layers are linear attention, which keeps a matrix.", 0.125,
)  # fmt: skip
share(
    "zamba2", "zamba2_7b", "2411.15242", "section 2: shared attention in place of every sixth block", 81,
    2 * 32 * 224, "Shared attention at few places keeps a sixth of the keys and values.", 0.167,
)  # fmt: skip
share(
    "falcon_h1", "falcon_h1_34b", "2507.22448", "section 2: heads of attention beside those of a state space", 72,
    2 * 20 * 128, "Beside a state space few heads of keys and values are enough: a fifth of those of the queries.", 0.2,
)  # fmt: skip

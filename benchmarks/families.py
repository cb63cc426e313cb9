"""Language models of this library beside transformers', same weights, one run; and how their time grows with length.

    zoo bench families                # writes benchmarks/results/families.json and families.md
    zoo bench families --only falcon_h1 mixtral     # keeps what is written of the others

For every family that transformers has a model of: one forward (all logits), one training step and one decode step
after a prefix, of two blocks at the width of the small published sizes, timed in turns. Our model is built from the
folder that transformers' ``save_pretrained`` writes, so both hold the same weights; the column "difference" shows it.
The sweep fits the exponent of our forward pass over length for the families whose cost is linear.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo.benchmarks import readme
from zoo.benchmarks.common import (
    RESULTS,
    command_line,
    fitted_exponent,
    interleaved,
    machine,
    medians,
    over_length,
    publish,
    telling,
)
from zoo.benchmarks.peers import Side, Text, apart, quiet_transformers

OURS, PEER = "zoo", "transformers"
VOCABULARY, LENGTH, DECODED = 1024, 512, 20
SWEEP = (512, 1024, 2048, 4096, 8192)
# families of linear cost, with the options that leave out what costs more: of longconv the attention
LINEAR: dict[str, dict[str, Any]] = {
    "mamba": {}, "mamba2": {}, "based": {}, "s4": {}, "s4d": {}, "longconv": {"attention_layers": ()},
    "scatterbrain": {}, "titans_lmm": {}, "titans_mac": {}, "titans_mag": {}, "titans_mal": {},
    "seqboat": {}, "lizard": {}, "linformer": {"max_length": 8192},
}  # fmt: skip
EXPONENT_LIMIT = 1.1

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 12}
MAMBA2 = {"mamba_n_heads": 24, "mamba_d_state": 128}
LATENT = SIZES | HEADS | {
    "kv_lora_rank": 256, "q_lora_rank": 384, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "intermediate_size": 2048, "moe_intermediate_size": 512, "n_routed_experts": 8, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
# transformers' configuration class and its options
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES | HEADS | {"intermediate_size": 2048}),
    "qwen3": ("Qwen3Config", SIZES | HEADS | {"intermediate_size": 2048, "num_key_value_heads": 4, "head_dim": 64}),
    "mamba": ("MambaConfig", SIZES | {"state_size": 16}),
    "falcon_mamba": ("FalconMambaConfig", SIZES | {"state_size": 16}),
    "mamba2": ("Mamba2Config", SIZES | {"state_size": 128, "num_heads": 24, "head_dim": 64, "n_groups": 1}),
    "falcon_h1": ("FalconH1Config", SIZES | HEADS | {"intermediate_size": 2048, "mamba_d_ssm": 1536,
        "mamba_n_heads": 24, "mamba_d_state": 128}),
    "recurrent_gemma": ("RecurrentGemmaConfig", SIZES | HEADS | {"num_key_value_heads": 1, "intermediate_size": 4096,
        "block_types": ["recurrent", "attention"]}),
    "lfm2": ("Lfm2Config", SIZES | HEADS | {"intermediate_size": 2048, "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"]}),
    "qwen3_next": ("Qwen3NextConfig", SIZES | HEADS | {"head_dim": 64, "linear_num_key_heads": 6,
        "linear_num_value_heads": 12, "num_experts": 8, "num_experts_per_tok": 2,
        "layer_types": ["linear_attention", "full_attention"]}),
    "kimi_linear": ("KimiLinearConfig", SIZES | HEADS | {"kv_lora_rank": 256, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 64, "linear_num_heads": 12, "linear_head_dim": 64,
        "intermediate_size": 2048, "moe_intermediate_size": 512, "num_local_experts": 8, "num_experts_per_tok": 2,
        "layer_types": ["linear_attention", "full_attention"], "pad_token_id": None}),
    "jamba": ("JambaConfig", SIZES | HEADS | {"intermediate_size": 1024, "num_experts": 8, "attn_layer_period": 2,
        "attn_layer_offset": 1}),
    "bamba": ("BambaConfig", SIZES | HEADS | MAMBA2 | {"intermediate_size": 2048, "attn_layer_indices": [1]}),
    "granite_hybrid": ("GraniteMoeHybridConfig", SIZES | HEADS | MAMBA2 | {"intermediate_size": 512,
        "layer_types": ["linear_attention", "full_attention"]}),
    "nemotron_h": ("NemotronHConfig", SIZES | HEADS | {"head_dim": 64, "intermediate_size": 3072, "mamba_num_heads": 24,
        "n_groups": 1, "time_step_min": 1e-30,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]}),
    "zamba2": ("Zamba2Config", SIZES | HEADS | {"n_mamba_heads": 24, "mamba_d_state": 128, "time_step_min": 1e-30,
        "layers_block_type": ["linear_attention", "hybrid"]}),
    "xlstm": ("xLSTMConfig", SIZES | {"num_heads": 4, "use_cache": False}),
    "deepseek_v2": ("DeepseekV2Config", LATENT | {"topk_method": "group_limited_greedy"}),
    "deepseek_v3": ("DeepseekV3Config", LATENT),
    "minimax": ("MiniMaxConfig", SIZES | HEADS | {"intermediate_size": 512, "num_local_experts": 8,
        "num_experts_per_tok": 2, "layer_types": ["full_attention", "linear_attention"]}),
    "gpt_oss": ("GptOssConfig", SIZES | HEADS | {"num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 512,
        "num_local_experts": 8, "num_experts_per_tok": 2}),
    "mixtral": ("MixtralConfig", SIZES | HEADS | {"intermediate_size": 1024, "num_local_experts": 8,
        "num_experts_per_tok": 2}),
    "olmoe": ("OlmoeConfig", SIZES | HEADS | {"intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", SIZES | HEADS | {"num_key_value_heads": 4, "head_dim": 64,
        "moe_intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2}),
}  # fmt: skip


def pair(name: str) -> dict[str, nn.Module]:
    """transformers' model with random weights, and ours from the folder it writes."""
    transformers, (config_class, options) = quiet_transformers(), PEERS[name]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**options)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return {PEER: theirs, OURS: zoo.create_model(f"local-dir:{folder}").eval()}


def our_decoding(model: Any, prefix: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    """A call that runs the tokens one by one from the prefix's state."""

    def decode() -> Tensor:
        with torch.no_grad():
            state = model.init_state(1, max_length=prefix.shape[1] + tokens.shape[1])
            model(prefix, state)
            return [model(tokens[:, t : t + 1], state) for t in range(tokens.shape[1])][-1]

    return decode


def their_decoding(model: Any, prefix: Tensor, tokens: Tensor) -> Callable[[], Tensor]:
    """The same of transformers' model; RecurrentGemma returns no cache, and is given one; Bamba counts no positions."""
    from transformers import DynamicCache

    stateful, counted = (model.config.model_type == name for name in ("recurrent_gemma", "bamba"))

    def decode() -> Tensor:
        with torch.no_grad():
            cache: dict[str, Any] = {"past_key_values": DynamicCache(config=model.config)} if stateful else {}
            found = model(prefix, **cache, use_cache=True)
            for t in range(tokens.shape[1]):
                cache |= {name: found[name] for name in ("cache_params", "past_key_values") if name in found}
                if counted:
                    cache["position_ids"] = torch.tensor([[prefix.shape[1] + t]])
                found = model(tokens[:, t : t + 1], **cache, use_cache=True)
            return found.logits

    return decode


def compare(name: str, budget: float) -> list[dict]:
    """One record a measure: the seconds of both sides, and how far their results are apart."""
    models = pair(name)
    held = {PEER: Text(models[PEER]), OURS: Side(models[OURS])}
    tokens = torch.randint(VOCABULARY, (1, LENGTH))
    records = []
    calls: dict[str, dict[str, Callable[[], Tensor]]] = {
        f"forward, T {LENGTH}": {side: partial(one.forward, tokens) for side, one in held.items()},
        f"training step, T {LENGTH}": {side: partial(one.training, tokens) for side, one in held.items()},
        f"prefill of 16 and {DECODED} decode steps": {
            side: decoding(models[side], tokens[:, :16], tokens[:, 16 : 16 + DECODED])
            for side, decoding in ((OURS, our_decoding), (PEER, their_decoding))
        },
    }
    for measure, sides in calls.items():
        runs, results = interleaved(sides, budget=budget)
        distance = apart(results[OURS], results[PEER])
        records.append({"name": name, "measure": measure, "runs": runs, "apart": distance})
    return records


def sweep(family: str, budget: float) -> dict:
    """Seconds of our forward pass over length, and the exponent."""
    seconds = []
    model: Any = zoo.create_model(f"{family}_nano", **LINEAR[family]).eval()
    for length in SWEEP:
        tokens = torch.randint(model.config.vocab_size, (1, length))
        runs, _ = interleaved({OURS: partial(Side(model).forward, tokens)}, budget=budget)
        seconds.append(statistics.median(runs[OURS]))
    return {"family": family, "seconds": seconds, "p": fitted_exponent(SWEEP, seconds)}


def show(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for r in records:
        seconds = medians(r["runs"])
        theirs, ours = seconds[PEER], seconds[OURS]
        rows.append(
            [
                f"{r['name']}, {r['measure']}",
                f"{theirs * 1e3:.1f}",
                f"{ours * 1e3:.1f}",
                f"{theirs / ours:.2f}x",
                str(min(map(len, r["runs"].values()))),
                f"{r['apart']:.0e}",
                r["commit"],
            ]
        )
    return ["measure (ms)", PEER, OURS, "ratio", "runs", "difference", "commit"], rows


def written() -> dict[str, Any]:
    """The results of earlier runs, each record with the commit that it measured."""
    path = RESULTS / "families.json"
    if not path.exists():
        return {"comparison": [], "over_length": []}
    found = json.loads(path.read_text(encoding="utf-8"))
    for record in found["comparison"]:
        record.setdefault("commit", found["machine"]["commit"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command_line("families", __doc__, budget=4.0, goes_on=True)
    parser.add_argument("--only", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="FAMILY")
    parser.add_argument("--no-sweep", action="store_true", help="leave out time over length")
    options = parser.parse_args(arguments)

    compared, swept = [], []
    linear = [] if options.no_sweep else list(LINEAR)
    with telling(len(options.only) + len(linear)) as say:
        for name in options.only:
            say(name)
            compared += compare(name, options.budget)
        for family in linear:
            say(f"{family} over length")
            swept.append(sweep(family, options.budget / 2))

    compared = [record | {"commit": machine()["commit"]} for record in compared]
    if not options.no_save:
        before = written()
        compared += [record for record in before["comparison"] if record["name"] not in options.only]
        compared.sort(key=lambda record: list(PEERS).index(record["name"]))
        swept = swept or before["over_length"]
    tables = [
        (f"Two blocks, width {SIZES['hidden_size']}, batch 1, float32", *show(compared)),
        over_length("forward of the nano", SWEEP, {r["family"]: r["seconds"] for r in swept}, EXPONENT_LIMIT),
    ]
    publish("families", options, {"comparison": compared, "over_length": swept}, *tables)
    if not options.no_save and readme.README.exists():
        readme.refresh()

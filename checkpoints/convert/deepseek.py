"""DeepSeek-V2 and V3 checkpoints, as published (one tensor an expert, V3 in FP8) and as transformers holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints.convert.dequantise import SIDE, from_fp8, require_method
from zoo.checkpoints.convert.experts import gathered, spread
from zoo.checkpoints.convert.rename import DECODER, rename
from zoo.checkpoints.convert.rope import read_rope, write_rope

MODEL_TYPES = ("deepseek_v2", "deepseek_v3")
NAMES = [  # published, ours
    ("model.embed_tokens.", "embedding."),
    ("model.norm.", "norm."),
    ("lm_head.", "head."),
    ("model.layers.#.input_layernorm.", "blocks.#.norm."),
    ("model.layers.#.post_attention_layernorm.", "blocks.#.mlp_norm."),
    ("model.layers.#.self_attn.o_proj.", "blocks.#.mixer.out_proj."),
    ("model.layers.#.self_attn.", "blocks.#.mixer."),
    ("model.layers.#.mlp.gate.e_score_correction_bias", "blocks.#.mlp.selection_bias"),
    ("model.layers.#.mlp.gate.", "blocks.#.mlp.router."),
    ("model.layers.#.mlp.shared_experts.gate_proj.", "blocks.#.mlp.shared.w1."),
    ("model.layers.#.mlp.shared_experts.up_proj.", "blocks.#.mlp.shared.w3."),
    ("model.layers.#.mlp.shared_experts.down_proj.", "blocks.#.mlp.shared.w2."),
    ("model.layers.#.mlp.gate_proj.", "blocks.#.mlp.w1."),
    ("model.layers.#.mlp.up_proj.", "blocks.#.mlp.w3."),
    ("model.layers.#.mlp.down_proj.", "blocks.#.mlp.w2."),
    ("model.layers.#.mlp.experts.", "blocks.#.mlp."),
    ("model.layers.#.enorm.", "blocks.#.enorm."),
    ("model.layers.#.hnorm.", "blocks.#.hnorm."),
    ("model.layers.#.eh_proj.", "blocks.#.eh_proj."),
    ("model.layers.#.shared_head.norm.", "blocks.#.shared_head_norm."),
]
_FIELDS = {
    **DECODER,
    "kv_lora_rank": "kv_lora_rank",
    "q_lora_rank": "q_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "intermediate_size": "mlp_dim",
    "first_k_dense_replace": "first_k_dense",
    "moe_intermediate_size": "expert_dim",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "top_k",
    "n_shared_experts": "num_shared",
    "routed_scaling_factor": "routed_scale",
    "aux_loss_alpha": "balance_weight",
}
_FIXED = {  # options with one value here
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "scoring_func": ("softmax", "sigmoid"),
    "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
}
_MODULE = ("enorm.", "hnorm.", "eh_proj.", "shared_head_norm.")


def recognises(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of a published DeepSeek-V2 or V3."""
    return "model.layers.0.self_attn.kv_a_proj_with_mqa.weight" in state_dict


def implied(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """How many modules of multi-token prediction lie behind the last layer."""
    return {"mtp_depth": sum(key.endswith(".eh_proj.weight") for key in state_dict)}


def to_zoo(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> the zoo's.

    The experts of a layer are stacked and transposed, FP8 matrices multiplied by their scales, in float32.
    The layers behind the last, of multi-token prediction, become ``mtp``, without their copies of embedding and head.

    Raises:
        ValueError: see ``from_fp8`` and ``gathered``.
    """
    renamed = rename(gathered(from_fp8(state_dict)), NAMES)
    further = sorted(int(key.split(".")[1]) for key in renamed if key.endswith(".eh_proj.weight"))
    modules = {f"blocks.{index}.": f"mtp.{k}." for k, index in enumerate(further)}
    shared = ("embed_tokens", "shared_head.head")
    copies = {f"model.layers.{index}.{name}.weight" for index in further for name in shared}
    result = {}
    for key, tensor in renamed.items():
        prefix = ".".join(key.split(".")[:2]) + "."
        if prefix in modules:
            rest = key.removeprefix(prefix)
            key = modules[prefix] + (rest if rest.startswith(_MODULE) else f"block.{rest}")
        if key not in copies:
            result[key] = tensor
    return result


def to_transformers(state_dict: Mapping[str, Tensor], stacked: bool = True) -> dict[str, Tensor]:
    """The zoo's names -> those of DeepseekV2ForCausalLM and DeepseekV3ForCausalLM; multi-token prediction behind the
    last layer, with its copies of embedding and head.

    The experts of a layer are one tensor each, as in memory; with ``stacked`` False one an expert, as in the files.
    """
    depth = 1 + max(int(key.split(".")[1]) for key in state_dict if key.startswith("blocks."))
    published = {}
    for key, tensor in state_dict.items():
        if key.startswith("mtp."):
            _, k, rest = key.split(".", 2)
            index = depth + int(k)
            key = f"blocks.{index}." + rest.removeprefix("block.")
            for name, source in (("embed_tokens", "embedding.weight"), ("shared_head.head", "head.weight")):
                if source in state_dict:
                    published[f"model.layers.{index}.{name}.weight"] = state_dict[source]
        published[key] = tensor
    return spread(rename(published, NAMES, backwards=True), stacked)


def config_from_transformers(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A published or transformers' ``config.json`` -> ("deepseek", fields of its configuration).

    transformers writes no weights of multi-token prediction: ``mtp_depth`` is 0 for its folders (those with
    "rope_parameters"), num_nextn_predict_layers for published ones.

    Raises:
        ValueError: for an option this architecture does not have here.
    """
    for name, values in _FIXED.items():
        if config.get(name) is not None and config[name] not in values:
            raise ValueError(f"{name} must be one of {list(values)}, got {config[name]!r}")
    require_method(config, quant_method="fp8", weight_block_size=[SIDE, SIDE], fmt="e4m3")
    third = config["model_type"] == "deepseek_v3"
    if not third and config.get("norm_topk_prob"):
        raise ValueError("norm_topk_prob must be false for deepseek_v2, as in every published one")
    fields = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    fields["q_lora_rank"] = config.get("q_lora_rank")
    fields |= {"score": "sigmoid", "group_top": 2, "bias_speed": 1e-3} if third else {
        "score": "softmax", "group_top": 1, "bias_speed": None,
    }  # fmt: skip
    fields["normalize"] = third and bool(config.get("norm_topk_prob", True))
    grouped = config.get("topk_method") != "greedy" and config.get("n_group") is not None
    fields["num_groups"] = config["n_group"] if grouped else 1
    fields["top_groups"] = config["topk_group"] if grouped else 1
    fields["rope_interleaved"] = bool(config.get("rope_interleave", True))
    fields["mtp_depth"] = 0 if "rope_parameters" in config else config.get("num_nextn_predict_layers") or 0
    fields["rope_base"], fields["yarn"] = read_rope(config)
    if fields["yarn"] is not None and fields["yarn"]["kind"] != "yarn":
        raise ValueError(f"rotary positions must be unscaled or scaled by YaRN, got {fields['yarn']}")
    return "deepseek", fields


def config_to_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our DeepSeek configuration -> ``config.json`` in the words of the published ones.

    A model of sigmoid scores becomes a deepseek_v3, one of softmax scores a deepseek_v2.
    """
    third, grouped = config["score"] == "sigmoid", config["num_groups"] > 1
    published = {theirs: config[ours] for theirs, ours in _FIELDS.items()} | {
        "model_type": "deepseek_v3" if third else "deepseek_v2",
        "architectures": ["DeepseekV3ForCausalLM" if third else "DeepseekV2ForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": config["num_heads"],
        "topk_method": "noaux_tc" if third else "group_limited_greedy" if grouped else "greedy",
        "scoring_func": config["score"],
        "norm_topk_prob": config["normalize"],
        "n_group": config["num_groups"],
        "topk_group": config["top_groups"],
        "num_nextn_predict_layers": config["mtp_depth"],
        "rope_interleave": config["rope_interleaved"],
        "rope_theta": config["rope_base"],
    }
    yarn = config["yarn"]
    if yarn is None:
        return published
    scaling = write_rope(config["rope_base"], yarn)
    del scaling["rope_theta"]
    return published | {
        "max_position_embeddings": round(yarn["factor"] * yarn["length"]),
        "rope_scaling": {"type": "yarn"} | scaling,
    }

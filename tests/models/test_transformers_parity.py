"""Language families against transformers, on random weights, through real folders."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers
from safetensors.torch import save_file

import zoo
from cases.peers import assert_same_gradients
from zoo.checkpoints.convert import _TRANSFORMERS, CONVERTERS, to_zoo

MAMBA = {"vocab_size": 96, "hidden_size": 48, "state_size": 8, "num_hidden_layers": 2}
MAMBA2 = {"vocab_size": 96, "hidden_size": 48, "state_size": 16, "num_hidden_layers": 2, "chunk_size": 16}
FALCON = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 16,
    "mamba_norm_before_gate": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
}  # fmt: skip
FALCON_MULTIPLIERS = {
    "embedding_multiplier": 5.7, "lm_head_multiplier": 0.4, "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.9, "key_multiplier": 0.4, "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.24,
    "ssm_multipliers": [0.35, 0.25, 1.4, 0.5, 0.7], "mlp_multipliers": [0.9, 0.6],
}  # fmt: skip
HYBRID = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "mamba_d_state": 8,
}  # fmt: skip
JAMBA = HYBRID | {
    "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "num_experts": 4, "pad_token_id": None,
}  # fmt: skip
MAMBA2_HYBRID = HYBRID | {
    "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_chunk_size": 16, "attn_layer_indices": [1, 2], "pad_token_id": None,
}  # fmt: skip
GRANITE = MAMBA2_HYBRID | {
    "layer_types": ["mamba", "attention", "mamba", "attention"], "shared_intermediate_size": 24, "num_local_experts": 4,
    "embedding_multiplier": 5.7, "attention_multiplier": 0.3, "residual_multiplier": 0.4, "logits_scaling": 3.0,
}  # fmt: skip
NEMOTRON = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 6, "num_key_value_heads": 2,
    "head_dim": 8, "ssm_state_size": 8, "mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 16,
    "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp"], "time_step_min": 1e-30, "pad_token_id": None,
}  # fmt: skip
ZAMBA = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 6, "num_hidden_layers": 5,
    "mamba_d_state": 8, "n_mamba_heads": 6, "chunk_size": 16, "time_step_min": 1e-30, "adapter_rank": 3,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid"], "pad_token_id": None,
}  # fmt: skip
KIMI = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
    "num_key_value_heads": 3, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "linear_num_heads": 3, "linear_head_dim": 10, "moe_intermediate_size": 20, "num_local_experts": 6,
    "num_experts_per_tok": 2, "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    "pad_token_id": None,
}  # fmt: skip
XLSTM = {
    "vocab_size": 96, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4, "chunk_size": 16,
    "use_cache": False,  # its gradients go through no cache; where one is wanted it is asked for
}  # fmt: skip
CONFIGS = {
    "mamba": (transformers.MambaConfig, MAMBA),
    "mamba-untied": (transformers.MambaConfig, MAMBA | {"tie_word_embeddings": False, "use_bias": True}),
    "mamba-rank": (transformers.MambaConfig, MAMBA | {"time_step_rank": 5, "conv_kernel": 3, "use_conv_bias": False}),
    "falcon_mamba": (transformers.FalconMambaConfig, MAMBA | {"mixer_rms_eps": 1e-3, "conv_kernel": 3}),
    "mamba2": (transformers.Mamba2Config, MAMBA2 | {"num_heads": 6, "head_dim": 16, "n_groups": 1}),
    "mamba2-groups": (transformers.Mamba2Config, MAMBA2 | {"num_heads": 12, "head_dim": 8, "n_groups": 3}),
    "mamba2-limits": (
        transformers.Mamba2Config,
        MAMBA2
        | {"num_heads": 6, "head_dim": 16, "n_groups": 2, "time_step_limit": (0.02, 0.5), "use_bias": True}
        | {"tie_word_embeddings": True},
    ),
    "falcon_h1": (transformers.FalconH1Config, FALCON),
    "falcon_h1-multipliers": (transformers.FalconH1Config, FALCON | FALCON_MULTIPLIERS | {"head_dim": 16}),
    "falcon_h1-norm": (
        transformers.FalconH1Config,
        FALCON | FALCON_MULTIPLIERS | {"mamba_rms_norm": True, "mamba_n_groups": 2, "tie_word_embeddings": True},
    ),
    "jamba": (transformers.JambaConfig, JAMBA),
    "jamba-odd": (
        transformers.JambaConfig,
        JAMBA
        | {"attn_layer_period": 2, "expert_layer_period": 3, "num_experts": 5, "num_experts_per_tok": 3}
        | {"mamba_d_conv": 3, "mamba_dt_rank": 5, "mamba_proj_bias": True, "mamba_conv_bias": False}
        | {"rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    ),
    "jamba-dense": (transformers.JambaConfig, JAMBA | {"num_experts": 1, "attn_layer_offset": 2}),
    "bamba": (transformers.BambaConfig, MAMBA2_HYBRID),
    "bamba-odd": (
        transformers.BambaConfig,
        MAMBA2_HYBRID
        | {"mamba_d_head": "auto", "mamba_n_heads": 12, "mamba_n_groups": 3, "mamba_d_conv": 3, "rms_norm_eps": 1e-3}
        | {"mamba_proj_bias": True, "mamba_conv_bias": False, "tie_word_embeddings": True, "mamba_expand": 3},
    ),
    "nemotron_h": (transformers.NemotronHConfig, NEMOTRON),
    "nemotron_h-odd": (
        transformers.NemotronHConfig,
        NEMOTRON
        | {"head_dim": 12, "n_groups": 3, "conv_kernel": 3, "use_conv_bias": False, "use_bias": True}
        | {"layers_block_type": ["attention", "mamba", "mlp", "mamba", "mlp"], "layer_norm_epsilon": 1e-3},
    ),
    "kimi_linear": (transformers.KimiLinearConfig, KIMI),
    "kimi_linear-odd": (
        transformers.KimiLinearConfig,
        KIMI
        | {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "q_lora_rank": 9,
            "qk_rope_head_dim": 5,
            "v_head_dim": 11,
        }
        | {"layer_types": ["full_attention", "linear_attention", "full_attention"], "linear_conv_kernel_dim": 3}
        | {"mlp_layer_types": ["sparse", "dense", "sparse"], "n_group": 3, "topk_group": 2, "n_shared_experts": 2}
        | {"norm_topk_prob": False, "routed_scaling_factor": 1.7, "rms_norm_eps": 1e-3},
    ),
    "zamba2": (transformers.Zamba2Config, ZAMBA),
    "zamba2-odd": (
        transformers.Zamba2Config,
        ZAMBA
        | {"num_mem_blocks": 2, "use_shared_attention_adapter": True, "use_mem_rope": True, "num_key_value_heads": 6}
        | {"mamba_ngroups": 2, "mamba_d_conv": 3},
    ),
    "granite": (transformers.GraniteMoeHybridConfig, GRANITE),
    "granite-odd": (
        transformers.GraniteMoeHybridConfig,
        GRANITE
        | {"num_experts_per_tok": 3, "num_local_experts": 5, "mamba_n_groups": 2, "tie_word_embeddings": True}
        | {"position_embedding_type": "rope", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "xlstm": (transformers.xLSTMConfig, XLSTM),
    "xlstm-odd": (
        transformers.xLSTMConfig,
        XLSTM
        | {"hidden_size": 96, "num_heads": 8, "qk_dim_factor": 2 / 3, "v_dim_factor": 4 / 3, "ffn_proj_factor": 1.9}
        | {"ffn_round_up_to_multiple_of": 24, "gate_soft_cap": 3.0, "output_logit_soft_cap": 2.0, "norm_eps": 1e-3}
        | {"eps": 1e-2},
    ),
    "granite-dense": (transformers.GraniteMoeHybridConfig, GRANITE | {"num_local_experts": 0, "rms_norm_eps": 1e-3}),
}


GRADIENTS = [
    "mamba", "falcon_mamba", "mamba2-groups", "falcon_h1-multipliers", "jamba-odd", "bamba-odd", "granite-odd",
    "nemotron_h-odd", "kimi_linear-odd", "zamba2-odd", "xlstm-odd",
]  # fmt: skip


def converter(case: str):
    """The module that converts this case's family."""
    model_type = CONFIGS[case][0].model_type
    return next(module for module in CONVERTERS if model_type in module.MODEL_TYPES)


def peer(case: str) -> torch.nn.Module:
    config_class, options = CONFIGS[case]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**options)).eval()
    with torch.no_grad():  # every parameter away from its initial value, so that none can be forgotten
        for name, parameter in model.named_parameters():
            scale = 0.02 if "embeddings" in name else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
            if name.endswith("igate_preact.bias"):  # from exp(-10), where next to nothing would be written
                parameter.add_(10)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model


@pytest.mark.parametrize("case", CONFIGS)
def test_whole_sequences_agree(case, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    ours = zoo.create_model(f"local-dir:{tmp_path}").eval()
    for length in (1, 3, 16, 45):
        tokens = torch.randint(0, 96, (3, length))
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


# Not "mamba2-limits": transformers' decoding step does not clamp the step size as its prefill does.
@pytest.mark.parametrize("case", [case for case in CONFIGS if case != "mamba2-limits"])
@pytest.mark.parametrize("length", [2, 16, 45])
def test_prefill_and_decode_agree(case, length, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    ours = zoo.create_model(f"local-dir:{tmp_path}").eval()
    tokens = torch.randint(0, 96, (3, length + 6))
    told = "position_ids" in inspect.signature(theirs.forward).parameters  # Bamba counts from 0 in every call otherwise
    with torch.no_grad():
        state = ours.init_state(3)
        expected = theirs(tokens[:, :length], use_cache=True)
        torch.testing.assert_close(ours(tokens[:, :length], state), expected.logits, atol=1e-4, rtol=1e-4)
        for t in range(length, length + 6):
            cache = {name: expected[name] for name in ("cache_params", "past_key_values") if name in expected}
            position = {"position_ids": torch.tensor([[t]])} if told else {}
            expected = theirs(tokens[:, t : t + 1], **cache, **position, use_cache=True)
            torch.testing.assert_close(ours(tokens[:, t : t + 1], state), expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", GRADIENTS)
def test_loss_and_gradients_agree(case, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    ours = zoo.create_model(f"local-dir:{tmp_path}")
    tokens = torch.randint(1, 96, (2, 40))  # transformers gives the padding token, 0, no gradient
    labels = tokens.masked_fill(torch.rand(tokens.shape) < 0.2, -100)
    loss, expected = ours(tokens, labels=labels), theirs(tokens, labels=labels).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    assert_same_gradients(ours, theirs, converter(case))


@pytest.mark.parametrize(
    "case",
    [
        "mamba",
        "mamba2",
        "falcon_h1",
        "kimi_linear",
        "jamba",
        "bamba",
        "granite_hybrid",
        "nemotron_h",
        "zamba2",
        "xlstm",
    ],
)
def test_conversion_is_its_own_inverse(case):
    state_dict = zoo.create_model(f"{case}_nano").state_dict()
    published = _TRANSFORMERS[case].to_transformers(state_dict)
    assert [found for found in CONVERTERS if found.recognises(published)] == [_TRANSFORMERS[case]]
    assert not any(found.recognises(state_dict) for found in CONVERTERS)
    assert to_zoo(published).keys() == state_dict.keys()


def test_authors_names_load(tmp_path):
    """state-spaces checkpoints: a pickled state dict with ``backbone.embedding`` and a tied ``lm_head``."""
    model = zoo.create_model("mamba_nano")
    names = converter("mamba").to_transformers(model.state_dict())
    published = {key.replace("embeddings", "embedding"): tensor for key, tensor in names.items()}
    torch.save(published, tmp_path / "pytorch_model.bin")
    loaded = zoo.create_model("mamba_nano", checkpoint_path=tmp_path)
    for (name, a), b in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_unknown_model_type_says_what_can_be_loaded(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"gpt2.*has no converter"):
        zoo.create_model(f"local-dir:{tmp_path}")

"""MiniMax against transformers, through the folders it writes and back, and as its authors publish it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from cases.peers import assert_same_gradients, close, shaken
from zoo.checkpoints.convert import minimax
from zoo.layers import CausalAttention, LightningAttention

LINEAR, FULL = "linear_attention", "full_attention"
SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "num_local_experts": 5, "num_experts_per_tok": 2, "block_size": 8,
    "layer_types": [LINEAR, LINEAR, FULL], "router_aux_loss_coef": 0.03,
}  # fmt: skip
CASES = {
    "minimax": SIZES | {"full_attn_alpha_factor": 1.6, "linear_attn_alpha_factor": 0.7, "mlp_alpha_factor": 1.3},
    "odd": SIZES
    | {"layer_types": [FULL, LINEAR, FULL], "head_dim": 10, "num_experts_per_tok": 3, "tie_word_embeddings": True}
    | {"full_attn_beta_factor": 0.6, "linear_attn_beta_factor": 1.5, "mlp_beta_factor": 2.0, "rms_norm_eps": 1e-3}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
}
PUBLISHED = {  # of MiniMaxAI/MiniMax-Text-01
    "model_type": "minimax_text_01", "vocab_size": 200064, "hidden_size": 6144, "intermediate_size": 9216,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "rotary_dim": 64,
    "rope_theta": 10000000, "num_local_experts": 32, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "postnorm": True,
    "attn_type_list": [int(index % 8 == 7) for index in range(80)], "router_aux_loss_coef": 0.001,
    "layernorm_full_attention_alpha": 3.5565588200778455, "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": 3.5565588200778455, "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": 3.5565588200778455, "layernorm_mlp_beta": 1.0, "shared_intermediate_size": 0,
    "hidden_act": "silu", "attention_dropout": 0.0, "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip


def peer(case: str) -> Any:
    return shaken(transformers.MiniMaxConfig(**CASES[case]))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_prefill_and_every_step_agree_and_the_way_back(case, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = zoo.create_model(f"local-dir:{tmp_path / 'theirs'}").eval()
    tokens = torch.randint(1, 96, (2, 40))
    whole = theirs(tokens).logits
    close(ours(tokens), whole)
    for length in (1, 20):
        state, expected = ours.init_state(2), theirs(tokens[:, :length], use_cache=True)
        close(ours(tokens[:, :length], state), expected.logits)
        for t in range(length, length + 9):  # told the position, which a cache without keys in its first layer does not
            cache = {"past_key_values": expected.past_key_values, "position_ids": torch.tensor([[t]])}
            expected = theirs(tokens[:, t : t + 1], **cache, use_cache=True)
            close(ours(tokens[:, t : t + 1], state), expected.logits)
    zoo.convert(tmp_path / "theirs", tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    close(back(tokens).logits, whole)  # in other chunks


@pytest.mark.parametrize("case", CASES)
def test_loss_balance_and_gradients_agree(case, tmp_path):
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    ours = zoo.create_model(f"local-dir:{tmp_path}")
    tokens = torch.randint(1, 96, (2, 30))
    expected = theirs(tokens, labels=tokens, output_router_logits=True)
    loss = ours(tokens, labels=tokens) + sum(zoo.auxiliary_losses(ours).values())
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs, minimax)


def test_folders_of_the_authors_load(tmp_path):
    """Without decays among the tensors, and with positions that turn half of the channels: their code is not at hand,
    so the attention is compared with transformers' by putting it on the channels that turn."""
    theirs = peer("minimax")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not minimax._DECAYS.fullmatch(name)}
    assert len(kept) == len(tensors) - 8 and any(".block_sparse_moe.experts.4.w2." in name for name in kept)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    config = PUBLISHED | {name: value for name, value in SIZES.items() if name != "layer_types"} | {
        "head_dim": 8, "rotary_dim": 4, "attn_type_list": [0, 0, 1], "layernorm_mlp_alpha": 1.3,
        "layernorm_full_attention_alpha": 1.6, "layernorm_linear_attention_alpha": 0.7,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    attention = ours.blocks[2].mixer
    assert attention.rotary.dim == 4 and attention.rotary.base == 1e7
    config |= {"rotary_dim": 8, "rope_theta": theirs.config.rope_parameters["rope_theta"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = torch.randint(1, 96, (2, 20))
    with torch.no_grad():
        close(zoo.create_model(f"local-dir:{tmp_path}").eval()(tokens), theirs(tokens).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"postnorm": False}, "postnorm must be true"),
        ({"sliding_window": 5}, "sliding_window must be 0, got 5"),
        ({"shared_intermediate_size": 8}, "shared_intermediate_size must be 0, got 8"),
        ({"attn_type_list": [0, 1]}, "layer_types must name full_attention or linear_attention for each layer"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions must be unscaled"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config must be"),
    ],
)
def test_options_without_a_counterpart_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        minimax.config_from_transformers(PUBLISHED | change)


def test_the_published_size():
    model: Any = zoo.create_model("minimax_text_01", device="meta")
    _, fields = minimax.config_from_transformers(PUBLISHED)
    assert model.config == zoo.config.from_json(model.config, "minimax_text_01", fields)
    kinds = {index: type(mixer) for index, mixer in enumerate(model.mixers)}
    assert {kind: sum(k is kind for k in kinds.values()) for kind in set(kinds.values())} == {
        LightningAttention: 70, CausalAttention: 10,
    }  # fmt: skip
    active = model.num_active_parameters() - 2 * 200064 * 6144  # as they count, without embedding and head
    assert kinds[7] is CausalAttention and abs(active / 1e9 - 45.9) < 0.1


def test_positions_that_turn_a_part_have_no_words_in_transformers(tmp_path):
    zoo.save_model(zoo.create_model("minimax_nano"), tmp_path / "a")
    with pytest.raises(ValueError, match=r"no words for rotary_fraction=0\.5"):
        zoo.convert(tmp_path / "a", tmp_path / "b", to="transformers")

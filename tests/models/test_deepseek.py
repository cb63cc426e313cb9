"""DeepSeek-V2 and V3: parity with transformers, the compressed cache, multi-token prediction, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.modeling_layers import MtpModel

import zoo
from cases.peers import assert_same_gradients
from zoo.checkpoints.convert import deepseek as converter
from zoo.cli import main

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "kv_lora_rank": 20, "q_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8,
    "v_head_dim": 10, "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2, "max_position_embeddings": 256,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 8.0, "original_max_position_embeddings": 32}
V2, V3 = transformers.DeepseekV2Config, transformers.DeepseekV3Config
CONFIGS = {
    "v2-greedy": (V2, SIZES | {"q_lora_rank": None, "topk_method": "greedy", "first_k_dense_replace": 0}),
    "v2-groups": (V2, SIZES | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0}),
    "v2-yarn": (V2, SIZES | {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}}),
    "v3": (V3, SIZES),
    "v3-halves": (V3, SIZES | {"rope_interleave": False, "norm_topk_prob": False, "tie_word_embeddings": True}),
    "v3-yarn": (
        V3,
        SIZES | {"n_group": 1, "topk_group": 1, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
    ),
    "v3-yarn-plain": (V3, SIZES | {"rope_parameters": YARN | {"beta_fast": 4.0}, "q_lora_rank": None}),
}  # fmt: skip


def peer(case: str) -> torch.nn.Module:
    config_class, options = CONFIGS[case]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_class(**options)).eval()
    with torch.no_grad():  # away from the initial values, so that none can be forgotten; the bias changes the choice
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.3 * torch.randn_like(buffer))
    return model


def pair(case: str, tmp_path) -> tuple[torch.nn.Module, torch.nn.Module]:
    theirs = peer(case)
    theirs.save_pretrained(tmp_path)
    return theirs, zoo.create_model(f"local-dir:{tmp_path}").eval()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("case", CONFIGS)
def test_prefill_and_every_decoding_step_agree_with_transformers(case, tmp_path):
    theirs, ours = pair(case, tmp_path)
    tokens = torch.randint(0, 96, (3, 52))
    with torch.no_grad():
        close(ours(tokens), theirs(tokens).logits)
        for length in (1, 17, 45):
            state, expected = ours.init_state(3), theirs(tokens[:, :length], use_cache=True)
            close(ours(tokens[:, :length], state), expected.logits)
            for t in range(length, length + 7):
                expected = theirs(tokens[:, t : t + 1], past_key_values=expected.past_key_values, use_cache=True)
                close(ours(tokens[:, t : t + 1], state), expected.logits)


@pytest.mark.parametrize("case", ["v2-groups", "v3-yarn"])
def test_loss_and_gradients_agree_with_transformers(case, tmp_path):
    theirs, ours = pair(case, tmp_path)
    tokens = torch.randint(0, 96, (2, 40))
    labels = tokens.masked_fill(torch.rand(tokens.shape) < 0.2, -100)
    loss, expected = ours.train()(tokens, labels=labels), theirs(tokens, labels=labels).loss
    close(loss, expected, 1e-5)
    loss.backward()
    expected.backward()
    assert_same_gradients(ours, theirs, converter)


def test_conversion_is_its_own_inverse_and_loads_into_transformers():
    model = zoo.create_model("deepseek_nano", mtp_depth=2)
    state_dict = model.state_dict()
    published = converter.to_transformers(state_dict)
    assert converter.recognises(published) and not converter.recognises(state_dict)
    back = converter.to_zoo(published)
    assert back.keys() == state_dict.keys()
    assert all(torch.equal(back[key], state_dict[key]) for key in back)
    assert {"embed_tokens", "shared_head", "enorm", "hnorm", "eh_proj"} <= {
        key.split(".")[3] for key in published if key.startswith("model.layers.4.")
    }
    theirs = peer("v3")
    ours = converter.to_zoo(theirs.state_dict())
    theirs.load_state_dict(converter.to_transformers(ours))


def test_fp8_matrices_are_multiplied_by_the_scale_of_their_block():
    weight, scale = torch.randn(200, 150).to(torch.float8_e4m3fn), torch.rand(2, 2) + 0.5
    key = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    (loaded,) = converter.to_zoo({key: weight, f"{key}_scale_inv": scale}).values()
    assert loaded.dtype == torch.float32  # a product of 4 and 24 bits; bfloat16 holds 8
    for rows in (slice(0, 128), slice(128, 200)):
        for columns in (slice(0, 128), slice(128, 150)):
            factor = scale[rows.start // 128, columns.start // 128]
            assert torch.equal(loaded[rows, columns], weight[rows, columns].float() * factor)


FP8 = SIZES | {"hidden_size": 144, "intermediate_size": 200, "moe_intermediate_size": 136, "q_lora_rank": 132}


def in_fp8(folder: Path) -> dict[str, Tensor]:
    """The folder's projections in FP8 with a scale a block, as published; returns the plain tensors, by transformers,
    which takes whole blocks alone and is given matrices with zeros around them."""
    tensors = load_file(folder / "model.safetensors")
    plain, published = {}, {}
    for name, tensor in tensors.items():
        if not re.search(r"layers\..*proj(_with_mqa)?\.weight", name):
            plain[name] = published[name] = tensor
            continue
        (rows, columns), grid = tensor.shape, [-(-size // 128) for size in tensor.shape]
        whole = F.pad(tensor, (0, 128 * grid[1] - columns, 0, 128 * grid[0] - rows))
        blocks = whole.view(grid[0], 128, grid[1], 128)
        scale = blocks.abs().amax((1, 3)) / 448
        whole = (blocks / scale[:, None, :, None]).view_as(whole).to(torch.float8_e4m3fn)
        published |= {name: whole[:rows, :columns].contiguous(), f"{name}_scale_inv": scale}
        plain[name] = Fp8Dequantize(None)._dequantize_one(whole, scale)[:rows, :columns].contiguous()
    save_file(published, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return plain


def test_folders_in_fp8_load_and_convert(tmp_path):
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(V3(**FP8)).eval()
    theirs.save_pretrained(tmp_path / "plain")
    theirs.save_pretrained(tmp_path / "published")
    plain = in_fp8(tmp_path / "published")
    assert {tuple(t.shape) for t in plain.values()} >= {(136, 144), (144, 136), (200, 144), (132, 144)}
    save_file(plain, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    main(["convert", str(tmp_path / "published"), str(tmp_path / "converted")])
    tokens = torch.randint(0, 96, (2, 20))
    expected = type(theirs).from_pretrained(tmp_path / "plain").eval()(tokens).logits
    for folder in ("published", "converted"):
        ours: Any = zoo.create_model(f"local-dir:{tmp_path / folder}").eval()
        close(ours(tokens), expected)
        assert torch.equal(ours.blocks[1].mlp.w2[3].mT, plain["model.layers.1.mlp.experts.3.down_proj.weight"])


MATRIX = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({}, f"{MATRIX} is in float8_e4m3fn and {MATRIX}_scale_inv is missing from the checkpoint"),
        ({MATRIX: torch.ones(1, 2)}, r"for each 128 x 128 block of .* \(200, 150\): \(2, 2\), got \(1, 2\)"),
        ({MATRIX: torch.ones(2, 2), "a.weight": torch.ones(1, 1)}, "scale of a.weight, which is missing"),
    ],
)
def test_scales_of_fp8_that_are_missing_or_do_not_fit(scales, message):
    tensors = {MATRIX: torch.zeros(200, 150).to(torch.float8_e4m3fn)}
    with pytest.raises(ValueError, match=message):
        converter.to_zoo(tensors | {f"{name}_scale_inv": scale for name, scale in scales.items()})


@pytest.mark.parametrize("change", [{"quant_method": "awq"}, {"weight_block_size": [64, 64]}, {"fmt": "e5m2"}])
def test_weights_in_other_forms_are_refused(change):
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"} | change
    with pytest.raises(ValueError, match=f"absent or have {next(iter(change))} "):
        converter.config_from_transformers({"model_type": "deepseek_v3", "quantization_config": quantised})


def test_modules_of_further_tokens_are_as_many_as_the_file_has_or_fewer_on_demand(tmp_path):
    """A published file without its config.json; the registered deepseek_v3_671b has none of the modules."""
    model = zoo.create_model("deepseek_nano", mtp_depth=2).eval()
    published = converter.to_transformers(model.state_dict(), stacked=False)
    torch.save(published, tmp_path / "published.bin")
    tokens = torch.randint(0, 256, (1, 12))
    for options, depth in (({}, 2), ({"mtp_depth": 1}, 1), ({"mtp_depth": 0}, 0)):
        loaded = zoo.create_model("deepseek_nano", checkpoint_path=tmp_path / "published.bin", **options).eval()
        assert loaded.config.mtp_depth == len(loaded.mtp) == depth
        torch.testing.assert_close(loaded(tokens), model(tokens))
        for kept, module in zip(model.mtp, loaded.mtp, strict=False):
            assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), module.parameters(), strict=True))
    zoo.load_weights(plain := zoo.create_model("deepseek_nano").eval(), published)
    torch.testing.assert_close(plain(tokens), model(tokens))
    with pytest.raises(ValueError, match=r"missing .*mtp\.2\."):
        zoo.create_model("deepseek_nano", checkpoint_path=tmp_path / "published.bin", mtp_depth=3)


def test_published_configurations_are_the_registered_ones():
    """The fields of the two published config.json files."""
    shared = {"hidden_act": "silu", "attention_bias": False, "moe_layer_freq": 1, "rope_theta": 1e4, "v_head_dim": 128}
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
    lite = shared | {
        "model_type": "deepseek_v2", "vocab_size": 102400, "hidden_size": 2048, "num_hidden_layers": 27,
        "num_attention_heads": 16, "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "routed_scaling_factor": 1.0,
        "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False, "n_group": 1, "topk_group": 1,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "rope_scaling": scaling | {"mscale": 0.707, "mscale_all_dim": 0.707},
    }  # fmt: skip
    v2 = lite | {
        "hidden_size": 5120, "num_hidden_layers": 60, "num_attention_heads": 128, "q_lora_rank": 1536,
        "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_routed_experts": 160, "topk_method":
        "group_limited_greedy", "n_group": 8, "topk_group": 3, "routed_scaling_factor": 16.0,
        "rope_scaling": scaling | {"mscale": 0.707, "mscale_all_dim": 0.707},
    }  # fmt: skip
    v3 = shared | {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
        "num_attention_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "n_group": 8, "topk_group": 4,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "num_nextn_predict_layers": 1,
        "rope_scaling": scaling | {"mscale": 1.0, "mscale_all_dim": 1.0},
    }  # fmt: skip
    for name, published in (("deepseek_v2_lite", lite), ("deepseek_v2_236b", v2), ("deepseek_v3_671b", v3)):
        registered = zoo.create_model(name, device="meta").config
        _, fields = converter.config_from_transformers(published)
        mtp = {"mtp_depth": published.get("num_nextn_predict_layers", 0)}
        assert dataclasses.replace(registered, **fields) == dataclasses.replace(registered, **mtp)


def test_parameter_counts_are_the_published_ones():
    def count(name: str, **options) -> tuple[int, int]:
        model = zoo.create_model(name, device="meta", **options)
        return sum(p.numel() for p in model.parameters()), model.num_active_parameters()

    assert count("deepseek_v2_lite") == (15_706_484_224, 2_661_150_208)  # 15.7B; 2.4B without the embedding
    assert count("deepseek_v2_236b") == (235_741_434_880, 21_375_800_320)  # 236B, 21B
    main = count("deepseek_v3_671b")
    assert main == (671_026_404_352, 37_552_282_624)  # 671B, 37B
    module = count("deepseek_v3_671b", mtp_depth=1)[0] - main[0]
    assert module == 11_610_067_968  # 11.5B unique
    assert round((main[0] + module + 2 * 129280 * 7168) / 1e9, 1) == 684.5  # with its copies: the Hub's 685B


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_a_token_are_the_papers_formula(dtype):
    """(kv_lora_rank + qk_rope_head_dim) numbers a token and layer, measured on the state (paper V2, table 1)."""
    model = zoo.create_model("deepseek_nano", dtype=dtype).eval()
    c, size = model.config, torch.finfo(dtype).bits // 8
    state = model.init_state(2, max_length=50)
    model(torch.randint(0, 256, (2, 50)), state)
    assert state.nbytes == 2 * 50 * c.depth * (c.kv_lora_rank + c.qk_rope_head_dim) * size
    keys_and_values = c.num_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim)
    assert state.nbytes < 2 * 50 * c.depth * keys_and_values * size / 4
    for name, elements in (("deepseek_v2_lite", 15_552), ("deepseek_v3_671b", 35_136)):
        large = zoo.create_model(name, device="meta", dtype=torch.bfloat16)
        assert large.init_state(1, max_length=4096).nbytes == 4096 * elements * 2


@torch.no_grad()
def test_multi_token_prediction_agrees_with_transformers():
    theirs = peer("v3")
    further = MtpModel(theirs, 1).eval()
    for parameter in further.layers.parameters():
        parameter.copy_(0.1 * torch.randn_like(parameter) + (parameter.dim() == 1))  # not initialised there
    published = theirs.state_dict()
    names = {"mtp_block.": "", "post_norm.": "shared_head.norm."}
    for key, tensor in further.layers[0].state_dict().items():
        for old, new in names.items():
            key = new + key.removeprefix(old) if key.startswith(old) else key
        published[f"model.layers.3.{key}"] = tensor
    _, fields = converter.config_from_transformers(theirs.config.to_dict())
    ours = zoo.create_model("deepseek_nano", **fields | {"mtp_depth": 1}).eval()
    ours.load_state_dict(converter.to_zoo(published))
    tokens = torch.randint(0, 96, (2, 30))
    hidden = theirs.model(tokens).last_hidden_state
    positions = torch.arange(29)[None]
    expected = further.forward_layer(0, hidden[:, :-1], positions, None, input_ids=tokens[:, 1:])
    ((found, labels),) = ours.further_tokens(ours.norm(ours.forward_blocks(ours.embed(tokens), None, None)), tokens)
    close(ours.head(found), theirs.lm_head(expected))
    assert torch.equal(labels, tokens[:, 1:])


def test_multi_token_prediction_is_a_training_loss_of_later_tokens():
    torch.manual_seed(0)
    model = zoo.create_model("deepseek_nano", mtp_depth=2, dtype=torch.float64)
    tokens = torch.randint(0, 256, (2, 20))
    plain = model.eval()(tokens, labels=tokens)
    assert zoo.auxiliary_losses(model) == {}
    assert torch.equal(model.train()(tokens, labels=tokens), plain)
    loss = zoo.auxiliary_losses(model)["mtp"]
    hidden = model.norm(model.forward_blocks(model.embed(tokens), None, None))
    expected = 0.0
    for k, module in enumerate(model.mtp, 1):
        hidden = module(hidden[:, :-1], model.embed(tokens[:, k:]))
        logits = model.head(hidden[:, :-1])
        expected += 0.15 * torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, k + 1 :].flatten())
    close(loss, expected, 1e-10)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.mtp.parameters())
    model(tokens[:, :2], labels=tokens[:, :2])
    assert "mtp" not in zoo.auxiliary_losses(model)


def test_multi_token_prediction_scores_no_token_of_another_sequence():
    model = zoo.create_model("deepseek_nano", mtp_depth=2, mtp_weight=1.0, balance_weight=0.0, dtype=torch.float64)
    tokens = torch.randint(0, 256, (1, 24))
    seq_idx = torch.tensor([[-1] * 4 + [0] * 9 + [1] * 11])
    model(tokens, labels=tokens, seq_idx=seq_idx)
    packed = zoo.auxiliary_losses(model)["mtp"]
    sums = [0.0, 0.0]
    for a, b in ((4, 13), (13, 24)):
        part = tokens[:, a:b]
        hidden = model.norm(model.forward_blocks(model.embed(part), None, None))
        for depth, (h, labels) in enumerate(model.further_tokens(hidden, part)):
            sums[depth] += model.cross_entropy(h, labels) * (b - a - 2 - depth)
    close(packed, (sums[0] / (7 + 9) + sums[1] / (6 + 8)) / 2, 1e-10)


@pytest.mark.parametrize("options", [
    {"q_lora_rank": None}, {"rope_interleaved": False}, {"num_shared": 0}, {"first_k_dense": 0}, {"first_k_dense": 3},
    {"yarn": {"factor": 4.0, "length": 8, "mscale_all_dim": 1.0}}, {"tie_embeddings": False},
    {"score": "softmax", "normalize": False, "bias_speed": None, "group_top": 1},
    {"top_k": 1, "num_groups": 1, "top_groups": 1},
])  # fmt: skip
def test_overrides_train_decode_and_survive_a_folder(options, tmp_path):
    model = zoo.create_model("deepseek_nano", dtype=torch.float64, **options)
    tokens = torch.randint(0, 256, (2, 12))
    model(tokens, labels=tokens).backward()
    model.eval()
    state = model.init_state(2)
    parts = [model(tokens[:, :5], state), *(model(tokens[:, t : t + 1], state) for t in range(5, 12))]
    close(torch.cat(parts, dim=1), model(tokens), 1e-9)
    zoo.save_model(model, tmp_path)
    rebuilt = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.float64).eval()
    assert rebuilt.config == model.config and torch.equal(rebuilt(tokens), model(tokens))


def test_padding_visits_no_expert():
    model = zoo.create_model("deepseek_nano").eval()
    tokens = torch.randint(0, 256, (2, 12))
    model(tokens, seq_idx=torch.tensor([[-1] * 5 + [0] * 7] * 2))
    counts = [v.sum() for name, v in zoo.activity(model).items() if name.endswith("tokens_per_expert")]
    assert counts == [2 * 7 * 2] * 2


def test_wrong_sizes_say_the_rule():
    with pytest.raises(ValueError, match=r"qk_rope_head_dim must be even.*got 7"):
        zoo.create_model("deepseek_nano", qk_rope_head_dim=7)
    with pytest.raises(ValueError, match="top_k must lie in"):
        zoo.create_model("deepseek_nano", top_k=5)
    with pytest.raises(ValueError, match="num_groups must divide the experts"):
        zoo.create_model("deepseek_nano", num_groups=3)
    with pytest.raises(ValueError, match="balance_weight must not be negative, got -1"):
        zoo.create_model("deepseek_nano", balance_weight=-1.0)
    with pytest.raises(ValueError, match="mtp_depth must not be negative, got -1"):
        zoo.create_model("deepseek_nano", mtp_depth=-1)
    with pytest.raises(ValueError, match=r"factor and length must be at least 1, got 0\.5"):
        zoo.create_model("deepseek_nano", yarn={"factor": 0.5})
    base = {"model_type": "deepseek_v3", "n_group": 1, "topk_group": 1}
    for wrong, message in (
        ({"attention_bias": True}, "attention_bias must be one of"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "scaled by YaRN"),
        ({"model_type": "deepseek_v2", "norm_topk_prob": True}, "norm_topk_prob must be false"),
    ):
        with pytest.raises(ValueError, match=message):
            converter.config_from_transformers(base | wrong)


def test_published_expert_tensors_load_as_transformers_stacked_ones(tmp_path):
    theirs = peer("v3")
    theirs.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in on_disk
    a, b = converter.to_zoo(on_disk), converter.to_zoo(theirs.state_dict())
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    save_file(converter.to_transformers(a), tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for (name, x), y in zip(again.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(x, y), name

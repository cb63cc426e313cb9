"""Conversions there and back: logits against transformers and timm on random weights, through real folders."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors import safe_open
from torch import nn

import zoo
from zoo.checkpoints.convert import settled
from zoo.cli import main
from zoo.convert import FREE, convert

MIXTRAL = {"normalize": True, "expert_every": 1, "residual_in_fp32": False, "depth": 2}
YARN = {"factor": 4.0, "length": 32, "mscale": 0.7, "mscale_all_dim": 0.7}
LANGUAGE = {  # name, options
    "mamba": ("mamba_nano", {}),
    "mamba-untied": ("mamba_nano", {"tie_embeddings": False, "dt_rank": 3, "d_conv": 3, "bias": True}),
    "falcon_mamba": ("mamba_nano", {"mixer_norm_eps": 1e-3, "depth": 2}),
    "mamba2": ("mamba2_nano", {}),
    "mamba2-options": ("mamba2_nano", {"num_groups": 2, "dt_limit": (0.01, 0.5), "tie_embeddings": False}),
    "falcon_h1": ("falcon_h1_nano", {"ssm_in_multiplier": 1.25, "key_multiplier": 0.5, "dt_limit": (0.0, 1.0)}),
    "deepseek_v3": ("deepseek_nano", {"mtp_depth": 1}),
    "deepseek_v2": ("deepseek_nano", {"score": "softmax", "normalize": False, "group_top": 1, "bias_speed": None,
                                      "mtp_depth": 0, "yarn": YARN}),
    "mixtral": ("moe_nano", MIXTRAL),
    "kimi_linear": ("kimi_linear_nano", {"mixers": "M*M", "mlps": "E-E", "num_groups": 2, "bias_speed": 0.01}),
    "jamba": ("jamba_nano", {"head_dim": 16, "dt_rank": 3}),
    "jamba-dense": ("jamba_nano", {"mlps": "-", "mixers": "MMM*"}),
    "bamba": ("bamba_nano", {"num_groups": 2, "dt_limit": (0.0, 1.0)}),
    "nemotron_h": ("nemotron_h_nano", {"head_dim": 16, "dt_limit": (0.01, math.inf)}),
    "zamba2": ("zamba2_nano", {"num_shared_blocks": 2, "depth": 6, "attention_adapters": False, "rope_base": None}),
    "xlstm": ("xlstm_nano", {"key_dim": 7, "value_dim": 5, "mlp_dim": 33, "gate_softcap": 4.0, "eps": 1e-3}),
    "granite": ("granite_hybrid_nano", {"residual_multiplier": 0.5, "logits_scaling": 6.0, "rope_base": 500.0}),
    "granite-dense": ("granite_hybrid_nano", {"mlps": "-", "tie_embeddings": False}),
    "olmoe": ("moe_nano", MIXTRAL | {"qk_norm": "joint", "normalize": False}),
    "gpt_oss": ("gpt_oss_nano", {"window": 4, "swiglu_limit": 0.5}),
    "qwen3_moe": ("moe_nano", MIXTRAL | {"qk_norm": "head", "head_dim": 20}),
}  # fmt: skip
IMAGES = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "dim": 24, "depth": 2, "num_heads": 3}),
    "vit-pooled": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "dim": 24, "depth": 1, "num_heads": 3, "global_pool": "avg"},
    ),
    "efficientvit": ("efficientvit_m0", {"dims": (16, 24, 32), "num_heads": (2, 3, 2), "img_size": 64, "window": 4}),
    "shvit": ("shvit_s1", {"dims": (16, 24, 32), "depths": (1, 1, 2), "partial_dims": (0, 6, 8)}),
    "vovnet": ("ese_vovnet39b", {"dims": (8, 12, 16, 20, 24), "mid_dims": (0, 4, 5, 6, 7), "stem_dim": 10}),
    "vovnet-separable": ("ese_vovnet19b_dw", {"dims": (8, 12, 16, 20, 24), "mid_dims": (0, 6, 8, 10, 12)}),
    "vovnet-first": ("vovnet39a", {"dims": (8, 12, 16, 20, 24), "mid_dims": (0, 4, 5, 6, 7)}),
}


def shaken(model: Any) -> Any:
    """Every parameter and running mean away from its initial value, so that none can be forgotten."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_mean.normal_(std=0.1)
    return model.eval()


@pytest.mark.parametrize("case", LANGUAGE)
def test_to_transformers_and_back(case, tmp_path):
    name, options = LANGUAGE[case]
    ours: Any = shaken(zoo.create_model(name, **options))
    zoo.save_model(ours, tmp_path / "zoo")
    convert(tmp_path / "zoo", tmp_path / "theirs", to="transformers")
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    theirs, report = load(tmp_path / "theirs", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(key.startswith("model.layers.") for key in report["unexpected_keys"])  # multi-token prediction
    tokens = torch.randint(0, 256, (2, 21))
    with torch.no_grad():
        expected = ours(tokens)
        torch.testing.assert_close(theirs.eval()(tokens).logits, expected, atol=2e-4, rtol=1e-4)
    convert(tmp_path / "theirs", tmp_path / "again")
    same_folder(tmp_path / "zoo", tmp_path / "again")


@pytest.mark.parametrize("case", IMAGES)
def test_to_timm_and_back(case, tmp_path):
    name, options = IMAGES[case]
    ours: Any = shaken(zoo.create_model(name, num_classes=7, in_chans=4, **options))
    zoo.save_model(ours, tmp_path / "zoo")
    convert(tmp_path / "zoo", tmp_path / "theirs", to="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'theirs'}", pretrained=True).eval()
    images = torch.randn(2, 4, *(ours.config.image_shape if "efficientvit" in name or "vit" in name else (64, 64)))
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), atol=1e-4, rtol=1e-4)
    assert preparation(theirs) == preparation(ours)
    convert(tmp_path / "theirs", tmp_path / "again")
    same_folder(tmp_path / "zoo", tmp_path / "again")


def preparation(model):
    """How images are prepared, as JSON has it: without tuples."""
    return json.loads(json.dumps(timm.data.resolve_model_data_config(model)))


def same_folder(first, second):
    a, b = (zoo.create_model(f"local-dir:{folder}") for folder in (first, second))
    fields = [settled(zoo.registry.lookup(m.config_name).family, dataclasses.asdict(m.config)) for m in (a, b)]
    for name in fields[0].keys() - FREE:
        assert fields[0][name] == fields[1][name], name
    assert a.state_dict().keys() == b.state_dict().keys()
    for key, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[key]), key


@pytest.mark.parametrize("model", ["vit_small_patch32_224", "deit_tiny_patch16_224", "shvit_s2", "ese_vovnet19b_slim"])
def test_folders_that_timm_writes_are_recognised(model, tmp_path):
    theirs = shaken(timm.create_model(model, num_classes=11))
    timm.models.save_for_hf(theirs, str(tmp_path), safe_serialization=True)
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    images = torch.randn(1, 3, *ours.config.image_shape)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-3, rtol=1e-3)
    assert preparation(theirs) == preparation(ours)


@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
def test_folders_of_mamba_ssm_are_recognised(layer, tmp_path):
    """The authors' files: a pickle with ``backbone.embedding``, and a vocabulary padded in the tensors alone."""
    options = {"d_state": 16, "expand": 2} | ({"headdim": 16, "ngroups": 2} if layer == "Mamba2" else {"dt_rank": 5})
    config = {"d_model": 32, "n_layer": 2, "vocab_size": 250, "ssm_cfg": {"layer": layer, **options},
              "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16,
              "tie_embeddings": True}  # fmt: skip
    name, given = ("mamba2_nano", {"head_dim": 16, "num_groups": 2}) if layer == "Mamba2" else (
        "mamba_nano", {"dt_rank": 5})  # fmt: skip
    expected: Any = shaken(zoo.create_model(name, dim=32, depth=2, d_state=16, vocab_size=256, **given))
    published = zoo.checkpoints.convert.mamba.to_transformers(expected.state_dict())
    published = {key.replace("embeddings", "embedding"): tensor for key, tensor in published.items()}
    torch.save(published, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours: Any = zoo.create_model(f"local-dir:{tmp_path}").eval()
    tokens = torch.randint(0, 250, (2, 9))
    torch.testing.assert_close(ours(tokens), expected(tokens))


def test_the_authors_sizes_of_mamba_ssm():
    """config.json of state-spaces/mamba-130m and mamba2-130m, which leave the defaults out."""
    from zoo.recognition import recognise

    plain = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True,
             "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}  # fmt: skip
    second = plain | {"ssm_cfg": {"layer": "Mamba2"}, "d_intermediate": 0, "attn_layer_idx": [], "attn_cfg": {},
                      "pad_vocab_size_multiple": 16, "tie_embeddings": True}  # fmt: skip
    assert recognise(plain)[1] == zoo.registry.lookup("mamba_130m").configure()
    assert recognise(second)[1] == zoo.registry.lookup("mamba2_130m").configure()
    with pytest.raises(ValueError, match=r"attn_layer_idx must be \[\] in a Mamba"):
        recognise(plain | {"attn_layer_idx": [9, 18]})
    with pytest.raises(ValueError, match="attn_cfg must say what attention_head_dim"):
        recognise(second | {"attn_layer_idx": [9, 18]})
    with pytest.raises(ValueError, match="ssm_cfg's rmsnorm cannot be set here"):
        recognise(second | {"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}})


def test_the_authors_sizes_of_based():
    """The fields that matter of config.json in hazyresearch/based-360m."""
    from zoo.recognition import recognise

    config = {
        "n_embd": 1024, "n_layer": 27, "n_head": 16, "n_inner": 2048, "vocab_size": 50257, "layer_norm_epsilon": 1e-5,
        "activation_function": "swiglu", "pad_vocab_size_multiple": 8, "alt_mixer_layers": [1, 6, 11, 16, 21],
        "alt_mixer_2_layers": [2, 7, 12, 17, 22], "alt_mixer": {"feature_dim": 16, "num_heads": 16},
        "alt_mixer_2": {"window_size": 256, "num_heads": 16}, "mixer": {"expand_proj": 4},
    }  # fmt: skip
    assert recognise(config)[1] == zoo.registry.lookup("based_360m").configure()


def test_what_a_layout_cannot_say_is_refused(tmp_path):
    zoo.save_model(zoo.create_model("shvit_nano"), tmp_path / "shvit")
    zoo.save_model(zoo.create_model("vim_nano"), tmp_path / "vim")
    zoo.save_model(zoo.create_model("moe_nano", expert_every=2), tmp_path / "moe")
    for source, to, message in [
        ("shvit", "timm", r"timm's layout has no words for stem_strides=\(1, 1\)"),
        ("moe", "transformers", "has no words for expert_every=2"),
        ("vim", "timm", "timm has no counterpart of the family 'vim'"),
        ("vim", "transformers", "transformers has no counterpart of 'vim'"),
        ("vim", "transformer", "unknown layout 'transformer', did you mean 'transformers'"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / source, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_dtypes_stay_and_averages_are_taken_on_request(tmp_path):
    model = zoo.create_model("transformer_nano", dtype=torch.bfloat16)
    average = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_ema": average, "epoch": 3}, tmp_path / "run.pth")
    for ema, expected in ((False, model.state_dict()), (True, average)):
        convert(tmp_path / "run.pth", tmp_path / "out", name="transformer_nano", ema=ema)
        with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
            tensor = file.get_tensor("embedding.weight")
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, expected["embedding.weight"])
    with pytest.raises(ValueError, match="leave out ema"):
        convert(tmp_path / "out", tmp_path / "again", ema=True)
    torch.save({"state_dict_ema": average}, tmp_path / "only.pth")
    assert torch.equal(zoo.checkpoints.read_state_dict(tmp_path / "only.pth")["norm.weight"], average["norm.weight"])
    torch.save({"model": model.state_dict()}, tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="holds no averaged weights"):
        zoo.checkpoints.read_state_dict(tmp_path / "plain.pth", ema=True)


def test_a_folder_of_a_named_model_keeps_its_configuration(tmp_path):
    """And is written in shards on request."""
    model = zoo.save_model(zoo.create_model("vit_nano", depth=2, num_heads=2, mean=(0.1,)), tmp_path / "model")
    convert(model, tmp_path / "out", name="vit_nano", max_shard_size="100KB")
    same_folder(model, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    with pytest.raises(ValueError, match="it is of the family 'vit', and vim_nano of 'vim'"):
        convert(model, tmp_path / "again", name="vim_nano")
    assert main(["convert", str(model), str(tmp_path / "cli"), "--max-shard-size", "many"]) == 2
    assert not (tmp_path / "again").exists() and not (tmp_path / "cli").exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["transformer_nano", "vit_nano"])
def test_prefixes_of_wrappers_are_taken_off(prefix, name, tmp_path):
    tensors = zoo.create_model(name).state_dict()
    torch.save({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "wrapped.pth")
    loaded = zoo.create_model(name, checkpoint_path=tmp_path / "wrapped.pth").state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items())


def test_copies_of_shared_blocks_are_dropped():
    """Zamba2's shared block has one name here; transformers' state dict has it under the names of all its places."""
    first, second = (shaken(zoo.create_model("zamba2_nano")) for _ in range(2))
    own = first.state_dict()
    assert not any(key.startswith("blocks.3.shared.") for key in own)
    copies = {key.replace("blocks.1.", "blocks.3."): own[key].clone() for key in own if ".shared." in key}
    zoo.load_weights(second, own | copies)
    tokens = torch.randint(0, 256, (2, 21))
    with torch.no_grad():
        torch.testing.assert_close(second(tokens), first(tokens), rtol=0, atol=0)
    with pytest.raises(ValueError, match="unexpected"):
        zoo.load_weights(second, own | {"blocks.0.shared.w1.weight": torch.zeros(1)})

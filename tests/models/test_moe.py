"""The mixture-of-experts baseline: dense limit, parity with transformers' Mixtral, side losses, capacity."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import zoo
from cases.peers import assert_same_gradients
from zoo.checkpoints.convert import foreign_config, mixtral
from zoo.layers import SwiGLU
from zoo.layers.moe import MoE

SMALL = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "num_local_experts": 4, "router_aux_loss_coef": 0.03,
}  # fmt: skip
CONFIGS = {
    "plain": SMALL,
    "head_dim": SMALL | {"head_dim": 16, "num_key_value_heads": 6, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
    "top3": SMALL | {"num_local_experts": 5, "num_experts_per_tok": 3, "rope_parameters": {"rope_theta": 500.0}},
    "top1": SMALL | {"num_experts_per_tok": 1, "num_hidden_layers": 1},
    "Olmoe": SMALL | {"num_experts": 5, "num_experts_per_tok": 3, "eos_token_id": 1, "pad_token_id": None},
    "Qwen3Moe": SMALL | {"moe_intermediate_size": 24, "head_dim": 16, "num_experts_per_tok": 2},
    "Qwen3Moe-normalised": SMALL
    | {"head_dim": 10, "norm_topk_prob": True, "num_experts_per_tok": 3, "rope_parameters": {"rope_theta": 500.0}},
}
nano = partial(zoo.create_model, "moe_nano")
close = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-9)


def text(batch: int = 2, length: int = 20, vocab: int = 256) -> torch.Tensor:
    return torch.randint(0, vocab, (batch, length))


def layer(**options: Any) -> MoE:
    return MoE(12, 10, 4, **options).double()


def mixtral_pair(case: str, folder: Any) -> tuple[Any, Any]:
    """transformers' model with every parameter away from its initial value, and ours from the folder it writes."""
    torch.manual_seed(0)
    kind = case.partition("-")[0] if case[0].isupper() else "Mixtral"
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[case])
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(folder)
    return theirs, zoo.create_model(f"local-dir:{folder}").eval()


def test_parameters_of_mixtral_8x7b_and_of_the_registered_size():
    model: Any = zoo.create_model("mixtral_8x7b", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 46_702_792_704
    assert model.num_active_parameters() == 12_879_925_248
    large: Any = zoo.create_model("mixtral_8x22b", device="meta")
    assert large.num_active_parameters() == 39_152_031_744
    for name, active in (("olmoe_1b_7b", 1.3), ("qwen3_30b_a3b", 3.3), ("qwen3_235b_a22b", 22)):  # as they are called
        assert abs(zoo.create_model(name, device="meta").num_active_parameters() / 1e9 - active) < 0.2
    model = zoo.create_model("moe_8x130m", device="meta")
    dense, expert, router = zoo.model_info("transformer_130m").num_parameters, 3 * 768 * 2560, 768 * 8
    assert sum(p.numel() for p in model.parameters()) == dense + 12 * (7 * expert + router) == 623_813_376
    assert model.num_active_parameters() == dense + 12 * (expert + router) == 199_140_096


def test_equal_experts_are_the_dense_model():
    dense: Any = zoo.create_model("transformer_nano", mlp_dim=160, dtype=torch.float64).eval()
    model: Any = nano(dtype=torch.float64).eval()
    weights = dense.state_dict()
    for name, tensor in model.state_dict().items():
        if ".mlp.w" in name:
            weights[name] = weights.pop(f"{name}.weight").mT.expand_as(tensor)
        elif ".router." in name:
            weights[name] = torch.randn_like(tensor)
    model.load_state_dict(weights)
    tokens = text()
    close(model(tokens), dense(tokens))
    close(model(tokens, labels=tokens), dense(tokens, labels=tokens))
    states = [m.init_state(2) for m in (model, dense)]
    for part in tokens.split([7, 1, 12], dim=1):
        close(model(part, states[0]), dense(part, states[1]))
    assert {tuple(layer.activity["tokens_per_expert"].shape) for layer in model.experts} == {(4,)}


def test_switch_is_the_dense_layer_times_the_probability():
    experts, dense = layer(top_k=1), SwiGLU(12, 10).double()
    with torch.no_grad():
        for name in ("w1", "w2", "w3"):
            getattr(experts, name).copy_(getattr(dense, name).weight.mT)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    close(experts(x), experts.router(x).softmax(-1).amax(-1, keepdim=True) * dense(x))
    assert not layer(top_k=1).normalize and layer(top_k=2).normalize and not layer(normalize=False).normalize


def test_equals_a_loop_over_tokens_and_does_not_depend_on_the_order_of_experts():
    experts = layer(top_k=3)
    x = torch.randn(7, 12, dtype=torch.float64)
    probability, chosen = experts.router(x).softmax(-1).topk(3)
    expected = torch.zeros_like(x)
    for m, (weights, indices) in enumerate(zip(probability, chosen, strict=True)):
        for weight, e in zip(weights / weights.sum(), indices, strict=True):
            hidden = F.silu(x[m] @ experts.w1[e]) * (x[m] @ experts.w3[e])
            expected[m] += weight * (hidden @ experts.w2[e])
    close(experts(x), expected)
    shuffle = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for weight in experts.parameters():
            weight.copy_(weight[shuffle])
    close(experts(x), expected)


@pytest.mark.parametrize("case", CONFIGS)
def test_mixtral_prefill_and_decode_agree(case, tmp_path):
    theirs, ours = mixtral_pair(case, tmp_path)
    tokens = text(3, 29, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
        state, cache = ours.init_state(3), None
        for part in tokens.split([9, 1, 1, 1, 1, 16], dim=1):
            expected = theirs(part, past_key_values=cache, use_cache=True)
            cache = expected.past_key_values
            torch.testing.assert_close(ours(part, state), expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("padding", [0, 6])
def test_mixtral_loss_balance_and_gradients_agree(case, padding, tmp_path):
    theirs, ours = mixtral_pair(case, tmp_path)
    tokens = text(2, 30, 96)
    labels, mask = tokens.clone(), torch.ones_like(tokens)
    if padding:
        labels[0, : padding + 1], mask[0, :padding] = -100, 0
    expected = theirs(tokens, labels=labels, attention_mask=mask if padding else None, output_router_logits=True)
    loss = ours.train()(tokens, labels=labels, seq_idx=mask - 1 if padding else None)
    side = zoo.auxiliary_losses(ours)
    assert list(side) == ["load_balance"]
    torch.testing.assert_close(side["load_balance"], 0.03 * expected.aux_loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(loss + side["load_balance"], expected.loss, atol=1e-5, rtol=1e-5)
    (loss + side["load_balance"]).backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs, mixtral)


@pytest.mark.parametrize("case", ["plain", "Olmoe", "Qwen3Moe"])
def test_both_layouts_convert_both_ways(case, tmp_path):
    theirs, ours = mixtral_pair(case, tmp_path)
    memory, files = theirs.state_dict(), load_file(tmp_path / "model.safetensors")
    assert memory.keys() != files.keys()
    expected = ours.state_dict()
    for published, stacked in ((memory, True), (files, False)):
        assert mixtral.recognises(published) and not mixtral.recognises(expected)
        converted, back = mixtral.to_zoo(published), mixtral.to_transformers(expected, stacked)
        assert converted.keys() == expected.keys() and back.keys() == published.keys()
        assert all(torch.equal(converted[name], expected[name]) for name in expected)
        assert all(torch.equal(back[name], published[name]) for name in published)
    save_file(mixtral.to_transformers(expected, stacked=False), tmp_path / "model.safetensors", {"format": "pt"})
    again = type(theirs).from_pretrained(tmp_path)
    assert all(torch.equal(tensor, memory[name]) for name, tensor in again.state_dict().items())


def test_conversion_says_what_does_not_fit():
    model: Any = nano()
    files = mixtral.to_transformers(model.state_dict(), stacked=False)
    del files["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    with pytest.raises(ValueError, match=r"layers.1.mlp.experts.w3: experts \[2\] are missing"):
        mixtral.to_zoo(files)
    with pytest.raises(ValueError, match="experts in every block"):
        mixtral.to_transformers(nano(expert_every=3).state_dict())
    assert not mixtral.recognises(files | {"model.layers.0.self_attn.q_norm.weight": torch.ones(1)})
    config = {"model_type": "mixtral", "hidden_size": 48}
    for option in ({"hidden_act": "gelu"}, {"sliding_window": 64}, {"router_jitter_noise": 0.1}):
        with pytest.raises(ValueError, match=next(iter(option))):
            mixtral.config_from_transformers(config | option)
    with pytest.raises(ValueError, match="unscaled"):
        mixtral.config_from_transformers(config | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}})
    for kind, option in (
        ("olmoe", {"clip_qkv": 8.0}), ("olmoe", {"attention_bias": True}), ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [0]}), ("qwen3_moe", {"use_sliding_window": True}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be absent or"):
            mixtral.config_from_transformers({"model_type": kind, **SMALL} | option)
    with pytest.raises(ValueError, match=r"qk_norm must be one of \(None, 'head', 'joint'\), got 'heads'"):
        nano(qk_norm="heads")
    assert mixtral.config_from_transformers(config)[1]["rope_base"] == 1e6
    assert mixtral.config_from_transformers(config | {"rope_theta": 7.0})[1]["rope_base"] == 7


def test_experts_are_in_every_so_many_blocks():
    model: Any = nano(depth=6, expert_every=2)
    assert [isinstance(block.mlp, MoE) for block in model.blocks] == [False, True] * 3
    model(text(), labels=text()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    scale = nano().experts[0].w2.std() / nano(depth=12).experts[0].w2.std()
    assert abs(scale - 2) < 0.1
    dense_scale = (
        model.blocks[0].mlp.w2.weight.std()
        / zoo.create_model("transformer_nano", depth=6).blocks[0].mlp.w2.weight.std()
        * (160 / 384) ** 0.5
    )
    assert abs(dense_scale - 1) < 0.1


def test_side_losses_are_published_in_training_only_and_weighted():
    tokens, model = text(), nano(balance_weight=0.5, z_weight=0.25)
    model(tokens)
    losses = zoo.auxiliary_losses(model)
    unit = nano(balance_weight=1.0, z_weight=1.0)
    unit.load_state_dict(model.state_dict())
    unit(tokens)
    for name, weight in (("load_balance", 0.5), ("router_z", 0.25)):
        torch.testing.assert_close(losses[name], weight * zoo.auxiliary_losses(unit)[name])
    model.eval()(tokens)
    assert zoo.auxiliary_losses(model) == {}
    silent = nano(balance_weight=0.0, z_weight=0.0)
    silent(tokens)
    assert zoo.auxiliary_losses(silent) == {}


def test_joint_balance_is_over_the_tokens_of_all_layers():
    tokens = text(4, 50)
    joint: Any = nano(balance_weight=1.0, joint_balance=True, z_weight=0.0)
    logits: list[torch.Tensor] = []
    for experts in joint.experts:
        experts.router.weight.data.mul_(20)
        experts.register_forward_hook(lambda m, args, _: logits.append(m.router(args[0]).flatten(0, 1)))
    single: Any = nano(balance_weight=1.0, z_weight=0.0)
    single.load_state_dict(joint.state_dict())
    joint(tokens)
    single(tokens)
    together, apart = (zoo.auxiliary_losses(model)["load_balance"] for model in (joint, single))
    torch.testing.assert_close(together, load_balancing_loss_func(tuple(logits), 4, 2))
    torch.testing.assert_close(apart, sum(load_balancing_loss_func((one,), 4, 2) for one in logits))
    assert abs(apart / 3 - together) > 0.01


@pytest.mark.parametrize("joint", [pytest.param(False, marks=pytest.mark.slow), True])
def test_side_losses_pass_gradients_through_checkpointing_and_compilation(joint):
    model: Any = nano(balance_weight=1.0, joint_balance=joint)
    tokens = text()

    def gradients(call):
        model.zero_grad()
        loss = call(tokens, labels=tokens)
        (loss + sum(zoo.auxiliary_losses(model).values())).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients(model)
    model.set_grad_checkpointing(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model), strict=True))
    model.set_grad_checkpointing(False)
    torch.compiler.reset()
    compiled = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)


def test_activity_is_what_was_computed():
    model: Any = nano().eval()
    tokens = text(2, 30)
    seq_idx = torch.tensor([[-1] * 10 + [0] * 20, [0] * 15 + [1] * 15])
    model(tokens)
    whole = zoo.activity(model)
    assert set(whole) == {
        f"blocks.{i}.mlp.{name}" for i in range(3) for name in ("tokens_per_expert", "utilisation", "dropped")
    }
    model(tokens, seq_idx=seq_idx)
    padded = zoo.activity(model)
    for i in range(3):
        assert whole[f"blocks.{i}.mlp.tokens_per_expert"].sum() == 2 * 60 and whole[f"blocks.{i}.mlp.dropped"] == 0
        assert padded[f"blocks.{i}.mlp.tokens_per_expert"].sum() == 2 * 50
        assert 0.25 < whole[f"blocks.{i}.mlp.utilisation"] <= 1
    one = layer(top_k=1)
    torch.nn.init.zeros_(one.router.weight)
    one.router.weight.data[2] = 1
    one(torch.ones(9, 12, dtype=torch.float64))
    assert one.activity["tokens_per_expert"].tolist() == [0, 0, 9, 0]
    close(one.activity["utilisation"].double(), torch.tensor(0.25).double())


def test_capacity_limits_training_and_not_evaluation():
    experts = layer(capacity_factor=0.5)
    free = layer()
    free.load_state_dict(experts.state_dict())
    x = torch.randn(2, 21, 12, dtype=torch.float64)
    y = experts(x)
    counts, dropped = (experts.activity[name] for name in ("tokens_per_expert", "dropped"))
    assert experts.capacity(42) == 11 and counts.max() == 11 and dropped > 0 and counts.sum() + dropped == 2 * 42
    same = (y == free(x)).all(-1)
    assert same[0, 0] and not same.all()
    mask = torch.zeros(2, 21, dtype=torch.bool)
    mask[1, 3:] = True
    few = experts(x, mask)
    assert not few[~mask].any() and (few[1, 3] == free(x)[1, 3]).all()  # padding takes no place
    close(experts.eval()(x), free.eval()(x))
    assert experts.capacity(42) is None and experts.activity["dropped"] == 0
    wide = layer(capacity_factor=4.0)
    wide.load_state_dict(free.state_dict())
    close(wide(x), free(x))


def test_capacity_keeps_decoding_equal_to_the_parallel_form():
    model: Any = nano(capacity_factor=0.25, top_k=1, dtype=torch.float64)
    tokens = text()
    model(tokens, labels=tokens).backward()
    assert zoo.activity(model)["blocks.0.mlp.dropped"] > 0
    model.eval()
    state = model.init_state(2)
    close(torch.cat([model(token, state) for token in tokens.split(1, dim=1)], dim=1), model(tokens))


def test_the_balance_loss_balances():
    experts = layer(balance_weight=1.0)
    experts.router.weight.data[0] += 1.0
    x = torch.randn(200, 12, dtype=torch.float64) + 0.5
    experts(x)
    before = experts.activity["utilisation"]
    optimizer = torch.optim.Adam(experts.parameters(), lr=0.02)
    for _ in range(60):
        experts(x)
        optimizer.zero_grad()
        experts.auxiliary_losses["load_balance"].backward()
        optimizer.step()
    assert experts.activity["utilisation"] > max(0.97, before + 0.1)
    assert abs(experts.auxiliary_losses["load_balance"] - 2) < 0.05  # top_k when balanced


def test_autocast_multiplies_in_bfloat16_and_routes_in_float32():
    experts = MoE(12, 10, 4)
    x = torch.randn(50, 12)
    exact = experts(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = experts(x)
    assert low.dtype == torch.bfloat16 and 0 < (low - exact).abs().max() < 0.02 * exact.abs().max()
    assert experts.routing is not None and experts.routing.scores.dtype == torch.float32
    torch.testing.assert_close(experts.routing.scores, experts.router(x).softmax(-1))
    assert experts.to("meta")(x.to("meta")).shape == x.shape


def test_a_layer_can_be_copied_and_pickled_after_training():
    experts = layer(balance_weight=1.0)
    experts(torch.randn(5, 12, dtype=torch.float64))
    for twin in (copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        assert twin.auxiliary_losses == {} and twin.routing is None and torch.equal(twin.w1, experts.w1)
    assert "load_balance" in experts.auxiliary_losses


def test_wrong_options_say_the_rule():
    for options, message in (
        ({"top_k": 5}, r"top_k must lie in \[1, num_experts\]: got top_k 5, num_experts 4"),
        ({"top_k": 0}, "top_k must be a positive integer"),
        ({"capacity_factor": 0.0}, "capacity_factor must be positive"),
        ({"balance_weight": -0.1}, "must not be negative"),
        ({"z_weight": float("nan")}, "must not be negative"),
        ({"expert_every": 4}, "expert_every must be at most depth"),
        ({"num_heads": 5}, "num_heads must divide dim"),
    ):
        with pytest.raises(ValueError, match=message):
            nano(**options)


def test_published_configurations_are_the_registered_ones():
    """The fields of the published config.json files; their router coefficient is of training alone."""
    shared = {
        "model_type": "mixtral", "vocab_size": 32000, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "tie_word_embeddings": False,
        "sliding_window": None, "initializer_range": 0.02, "hidden_act": "silu",
    }  # fmt: skip
    sizes = {
        "mixtral_8x7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                         "num_attention_heads": 32, "router_aux_loss_coef": 0.02},
        "mixtral_8x22b": {"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56,
                          "num_attention_heads": 48, "router_aux_loss_coef": 0.001},
    }  # fmt: skip
    small = {"num_experts_per_tok": 8, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False}
    qwen3 = small | {
        "model_type": "qwen3_moe", "vocab_size": 151936, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
        "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "sliding_window": None, "use_sliding_window": False, "rope_scaling": None,
    }  # fmt: skip
    kinds = dict.fromkeys(sizes, shared) | {"olmoe_1b_7b": small, "qwen3_30b_a3b": qwen3, "qwen3_235b_a22b": qwen3}
    sizes |= {
        "olmoe_1b_7b": {"model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
                        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
                        "num_experts": 64, "norm_topk_prob": False, "rope_theta": 10000.0, "clip_qkv": None},
        "qwen3_30b_a3b": {"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
                          "num_hidden_layers": 48, "num_attention_heads": 32},
        "qwen3_235b_a22b": {"hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536,
                            "num_hidden_layers": 94, "num_attention_heads": 64},
    }  # fmt: skip
    for name, size in sizes.items():
        registered: Any = zoo.create_model(name, device="meta").config
        _, fields = foreign_config(kinds[name] | size)
        changed = {field for field, value in fields.items() if getattr(registered, field) != value}
        assert changed <= {"normalize", "balance_weight"}, changed

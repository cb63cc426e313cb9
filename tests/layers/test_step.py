"""Steps that run as one program of C: the same as the layers called one by one, and only where these are plain."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.kernels import implementation, native
from zoo.kernels.moe import top_k_routing
from zoo.kernels.step_program import SOURCE, Program, Value
from zoo.layers.quant import Format, Linear, Record
from zoo.layers.step import Writer, obstacle, programmed
from zoo.quantize import Calibration

pytestmark = pytest.mark.skipif(
    native.obstacle(SOURCE, torch.device("cpu")) is not None, reason="there is no C compiler"
)
GEMMA = {
    "norm_order": "both", "norm_offset": True, "activation": "gelu", "attention_softcap": 2.0, "logit_softcap": 3.0,
    "window": 4, "full_layers": (1,), "local_rope_base": 100.0, "embedding_scale": 3.0, "attention_scale": 0.3,
}  # fmt: skip
YARN = {"factor": 4.0, "length": 8, "mscale": 0.7}
CASES: dict[str, tuple[str, dict]] = {
    "mamba": ("mamba_nano", {}),
    "mamba2": ("mamba2_nano", {"num_groups": 2}),
    "qwen": ("transformer_nano", {"qk_norm": "head", "qkv_bias": True, "head_dim": 10, "residual_in_fp32": True}),
    "olmo": ("transformer_nano", {"norm_order": "after", "qk_norm": "joint", "nope_layers": (1,)}),
    "gemma": ("transformer_nano", GEMMA),
    "falcon_h1": (
        "falcon_h1_nano",
        {"ssm_norm": True, "ssm_multipliers": (0.5, 1, 2, 1, 0.7), "mlp_multipliers": (0.3, 2.0), "head_multiplier": 2},
    ),
    "moe": ("moe_nano", {"num_experts": 5, "top_k": 3, "expert_every": 2, "mlp_dim": 72}),
    "gpt_oss": ("gpt_oss_nano", {"window": 3, "mlp_dim": 80}),
    "smallthinker": ("smallthinker_nano", {"window": 6, "num_experts": 6}),
    "lfm2": ("lfm2_nano", {"conv_bias": True}),
    "bamba": ("bamba_nano", {"ssm_bias": True}),
    "granite_hybrid": ("granite_hybrid_nano", {"residual_multiplier": 0.3, "logits_scaling": 2.0, "mlps": "E-"}),
    "jamba": ("jamba_nano", {"num_experts": 3}),
    "nemotron_h": ("nemotron_h_nano", {}),
    "hamburger": ("hamburger_nano", {}),
    "deltanet": ("deltanet_nano", {"negative_eigenvalues": True, "d_conv": 3, "expand_v": 0.75}),
    "gated_deltanet": ("gated_deltanet_nano", {"head_dim": 40}),
    "qwen3_next": ("qwen3_next_nano", {"delta_value_dim": 40}),
    "qwen3_5": ("qwen3_next_nano", {"fused": False, "dense_layers": (0,), "attention_bias": True}),
    "kimi_linear": ("kimi_linear_nano", {"q_lora_rank": 24, "delta_heads": 3}),
    "deepseek": ("deepseek_nano", {"yarn": YARN, "v_head_dim": 24}),
    "deepseek_v2": ("deepseek_nano", {"q_lora_rank": None, "rope_interleaved": False, "num_heads": 3}),
    "minimax": (
        "minimax_nano",
        {"lightning_multipliers": (1.2, 0.7), "attention_multipliers": (1.5, 0.5), "mlp_multipliers": (0.8, 1.1)},
    ),
    "gla": ("gla_nano", {"num_heads": 2}),
    "retnet": ("retnet_nano", {"expand_v": 1.25}),
    "rwkv7": ("rwkv7_nano", {"head_dim": 16}),
    "recurrent_gemma": ("recurrent_gemma_nano", {"window": 4, "num_kv_heads": 2, "attention_bias": True}),
    "based": ("based_nano", {"feature_dim": 5, "window": 4}),
    "xlstm": ("xlstm_nano", {"value_dim": 24, "eps": 0.01}),
    "xlstm1": ("xlstm1_nano", {"d_conv": 3}),
    "s4": ("s4_nano", {"num_ssm": 1, "d_state": 6, "mlp_every": 1, "dim": 72}),
    "s4d": ("s4d_nano", {"discretisation": "bilinear", "init": "lin", "drop_rate": 0.1}),
    "zamba2": ("zamba2_nano", {"num_shared_blocks": 2, "mixers": "M***"}),
    "zamba2_1": ("zamba2_nano", {"attention_adapters": False, "rope_base": None}),
}


def scrambled(name: str, **options) -> nn.Module:
    """A model none of whose parameters have their initial values."""
    model = zoo.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def steps(model, tokens: Tensor, one_by_one: bool = False, prompt: int = 5):
    """Logits of every step behind a prompt, and the state."""
    with torch.no_grad(), nullcontext() if one_by_one else programmed(model):
        state = model.init_state(len(tokens))
        model(tokens[:, :prompt], state)
        ran = [] if one_by_one else watched(model.stepper)
        found = [model(tokens[:, t : t + 1], state) for t in range(prompt, tokens.shape[1])]
        assert one_by_one or [logits is not None for logits in ran] == [True] * len(found)
    return torch.cat(found, 1), state


def watched(stepper) -> list[Tensor | None]:
    """What it will have been asked for; None where it has left a step to the layers."""
    found, run = [], stepper._run
    stepper._run = lambda *given: (found.append(run(*given)), found[-1])[1]
    return found


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact.double()).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [
    {"sparsity": 0.7}, {"pattern": "2:4"}, {"method": "r_sparse", "share": 0.8}, {"method": "r_sparse", "share": 1.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("case", ["gemma", "mamba2", "moe"])
def test_sparse_matrices(case, options, rows):
    """Of linear layers and experts, and columns that each token chooses."""
    name, sizes = CASES[case]
    model = scrambled(name, **sizes)
    tokens = torch.randint(0, 256, (rows, 10))
    zoo.sparsify(model, calibration=Calibration([torch.randint(0, 256, (2, 30))]), **options)
    exact, _ = steps(model, tokens, one_by_one=True)
    found, _ = steps(model, tokens)
    assert error(found, exact) < 1e-5


@pytest.mark.parametrize("record", [{}, {"bits": 3}, {"layout": "e4m3"}], ids=["float32", "integers", "minifloats"])
@pytest.mark.parametrize("case", CASES)
def test_a_program_computes_what_the_layers_do(case, record):
    name, options = CASES[case]
    model = scrambled(name, **options)
    if record:
        zoo.quantize(model, **record)
    for rows in (1, 3):
        tokens = torch.randint(0, 256, (rows, 10))
        exact, there = steps(model, tokens, one_by_one=True)
        found, here = steps(model, tokens)
        assert error(found, exact) < 1e-5
        for one, other in zip(here.states, there.states, strict=True):
            assert one.seen == other.seen == 10
            for (key, tensor), (_, wanted) in zip(one.tensors(), other.tensors(), strict=True):
                assert tensor.dtype == wanted.dtype and error(tensor, wanted) < 1e-5, key


@pytest.mark.parametrize("case", CASES)
def test_a_program_in_bfloat16_is_as_near_to_the_truth(case):
    name, options = CASES[case]
    model = scrambled(name, **options).bfloat16()
    tokens = torch.randint(0, 256, (2, 12))
    layers, _ = steps(model, tokens, one_by_one=True)
    found, state = steps(model, tokens)
    exact, _ = steps(model.double(), tokens, one_by_one=True)
    assert error(found, exact) < 1.5 * error(layers, exact)
    kept = [t.dtype for s in state.states for _, t in s.tensors() if t.is_floating_point()]
    assert set(kept) <= {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("name", ["mamba_nano", "mamba2_nano", "transformer_nano", "rwkv7_nano", "deepseek_nano"])
def test_a_state_that_another_holds_is_not_written_to(name):
    model, tokens = scrambled(name), torch.randint(0, 256, (2, 8))
    with torch.no_grad(), programmed(model):
        state = model.init_state(2)
        model(tokens[:, :2], state)
        model(tokens[:, 2:3], state)
        state.commit()
        views = [t[:, :1] for s in state.states for _, t in s.tensors() if hasattr(s, "conv")]
        values = [t.clone() for t in views]
        first = [model(tokens[:, t : t + 1], state) for t in (3, 4)]
        state.rollback()
        assert all(torch.equal(view, value) for view, value in zip(views, values, strict=True))
        assert torch.equal(torch.cat(first), torch.cat([model(tokens[:, t : t + 1], state) for t in (3, 4)]))
        memory = [t.data_ptr() for s in state.states for _, t in s.tensors()]
        model(tokens[:, 5:6], state)
        assert memory == [t.data_ptr() for s in state.states for _, t in s.tensors()]  # nobody else holds it


def test_what_changes_within_is_in_effect():
    model, tokens, calls = scrambled("mamba2_nano"), torch.randint(0, 256, (1, 4)), []

    def both() -> tuple[Tensor, Tensor]:
        found = []
        for chosen in (nullcontext(), implementation("reference")):
            with chosen:
                state = model.init_state(1)
                model(tokens[:, :3], state)
                found.append(model(tokens[:, 3:], state))
        return found[0], found[1]

    with torch.no_grad(), programmed(model):
        before, _ = both()
        mixer = model.blocks[1].mixer
        for change in (
            lambda: model.blocks[0].norm.weight.mul_(2),
            lambda: setattr(mixer, "A_log", nn.Parameter(mixer.A_log + 1)),
            lambda: setattr(mixer.out_proj.weight, "data", -mixer.out_proj.weight.data),
            lambda: setattr(mixer, "out_proj", nn.Sequential(mixer.out_proj, nn.ReLU())),
        ):
            change()
            found, exact = both()
            assert error(found, exact) < 1e-5 < error(found, before)
            before = found
        handle = model.blocks[2].register_forward_hook(lambda *_: calls.append(1))
        both()
        handle.remove()
    assert len(calls) == 4 and model.stepper is None


def test_the_families_that_have_a_program_are_those_tested_here():
    """And each other one says why it has none."""
    reasons = {}
    for name in zoo.list_models("*_nano", task="language"):
        reasons[zoo.model_info(name).family] = obstacle(zoo.create_model(name).eval())
    assert {family for family, why in reasons.items() if why is None} == {
        zoo.model_info(name).family for name, _ in CASES.values()
    }
    assert reasons["lizard"] == "LizardAttention" and reasons["mor"] == "its blocks are not run one after the other"


def test_a_program_is_compared_with_the_model_where_somebody_may_have_changed_it(monkeypatch):
    """Between the steps of a stream, not within a call."""
    model, seen, known = scrambled("mamba_nano"), [], Writer.is_current
    monkeypatch.setattr(Writer, "is_current", property(lambda self: (seen.append(1), known.__get__(self))[1]))
    prompt = torch.randint(0, 256, (1, 4))
    zoo.generate(model, prompt, 6, temperature=0)
    assert not seen
    stream = zoo.stream(model, prompt, 6, temperature=0)
    said = torch.stack([next(stream).tokens for _ in range(3)], 1)
    with torch.no_grad(), implementation("reference"):  # layer by layer
        state = model.init_state(1)
        model(torch.cat([prompt, said[:, :2]], 1), state)
        model.head.weight.neg_()
        expected = model(said[:, 2:], state)[0, -1].argmax()
    found = [step.tokens for step in stream]
    assert found[0] == expected and len(found) == 3 and len(seen) == 4


def test_a_window_that_another_holds_is_not_written_to():
    model, tokens = scrambled("transformer_nano", window=3), torch.randint(0, 256, (2, 9))
    with torch.no_grad(), programmed(model):
        state = model.init_state(2)
        model(tokens[:, :4], state)
        model(tokens[:, 4:5], state)
        state.commit()
        values = [t.clone() for s in state.states for _, t in s.committed.tensors()]
        first = [model(tokens[:, t : t + 1], state) for t in (5, 6)]
        held = [t for s in state.states for _, t in s.committed.tensors()]
        assert all(torch.equal(one, other) for one, other in zip(held, values, strict=True))
        state.rollback()
        assert torch.equal(torch.cat(first), torch.cat([model(tokens[:, t : t + 1], state) for t in (5, 6)]))


def test_experts_report_nothing_of_a_step_that_calls_none():
    model, tokens = scrambled("moe_nano"), torch.randint(0, 256, (1, 4))
    with torch.no_grad(), programmed(model):
        state = model.init_state(1)
        model(tokens[:, :3], state)
        assert zoo.activity(model)
        model(tokens[:, 3:], state)
    assert not zoo.activity(model)


def test_experts_of_groups_with_a_bias_are_those_of_the_routing():
    logits, bias = torch.randn(3, 12), torch.randn(12)
    options = {"score": "sigmoid", "normalize": True, "scale": 2.5, "num_groups": 4, "top_groups": 2, "group_top": 2}
    program = Program(3)
    chosen = program.route(Value(logits), 4, bias=bias, **options)
    program.finish()
    program.run()
    wanted = top_k_routing(logits, 4, bias=bias, **options)
    assert torch.equal(chosen.index, wanted.experts)
    torch.testing.assert_close(chosen.weight, wanted.weights)


def test_the_first_token_of_a_gated_recurrence_has_no_root():
    """And the program sees in the state that it is the first."""
    model, tokens = scrambled("recurrent_gemma_nano"), torch.randint(0, 256, (2, 4))
    found = []
    for chosen in (nullcontext(), programmed(model)):
        with torch.no_grad(), chosen:
            state = model.init_state(2)
            found.append(torch.cat([model(tokens[:, t : t + 1], state) for t in range(4)], 1))
    assert error(*found) < 1e-5


@pytest.mark.parametrize("groups", [32, 20])
@pytest.mark.parametrize("bits", [8, 5])
def test_rows_are_rounded_as_the_layer_does(bits, groups):
    """Of one layer, as the last bit of an input may decide which integer it becomes."""
    matrix, bias, x = torch.randn(50, 160), nn.Parameter(torch.randn(50)), torch.randn(3, 160)
    record = Record.nearest(matrix, Format(bits=4, group_size=groups, activation_bits=bits))
    linear, program = Linear(record, bias).eval(), Writer(3)
    y = program.call(linear, Value(x))
    program.finish()
    program.run()
    rounded = linear(x)
    assert error(y.tensor, rounded) < 1e-6 < 1e-3 < error(rounded, x @ record.dequantise().mT + bias)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0])
def test_a_rounded_row_is_no_number_where_one_is_none(number):
    """And others stay what they are; a row of zeros gives the bias."""
    x, bias = torch.randn(3, 64), nn.Parameter(torch.randn(50))
    x[1] = x[1] * 0 + number if number == 0 else torch.where(torch.arange(64) == 40, number, x[1])
    linear = Linear(Record.nearest(torch.randn(50, 64), Format(bits=4, activation_bits=8)), bias).eval()
    program = Writer(3)
    y = program.call(linear, Value(x))
    program.finish()
    program.run()
    torch.testing.assert_close(y.tensor, linear(x).detach(), equal_nan=True, rtol=1e-5, atol=1e-5)
    assert torch.equal(y.tensor[1], bias) if number == 0 else y.tensor[1].isnan().all()


@pytest.mark.parametrize("name", ["transformer_nano", "moe_nano"])
def test_rounded_activations_in_a_program(name):
    """What flips a last bit is far less than what rounding changes."""
    model, tokens = scrambled(name), torch.randint(0, 256, (2, 10))
    exact, _ = steps(model, tokens, one_by_one=True)
    zoo.quantize(model, bits=8, activation_bits=6)
    rounded, _ = steps(model, tokens, one_by_one=True)
    found, _ = steps(model, tokens)
    assert 5 * error(found, rounded) < error(rounded, exact)


def test_what_is_not_described_is_called():
    model, tokens = scrambled("transformer_nano"), torch.randint(0, 256, (1, 9))
    model.blocks[1].mlp.act = torch.tanh
    exact, _ = steps(model, tokens, one_by_one=True)
    with torch.no_grad(), programmed(model):
        state = model.init_state(1)
        model(tokens[:, :5], state)
        found = torch.cat([model(tokens[:, t : t + 1], state) for t in range(5, 9)], 1)
        assert model.stepper.made == {1: None}
    assert error(found, exact) < 1e-5


def test_padding_and_full_caches_are_left_to_the_layers():
    model, tokens = scrambled("transformer_nano"), torch.randint(0, 256, (2, 6))
    ids = torch.tensor([[-1, -1, 0, 0, 0], [0, 0, 0, 0, 0]])
    found = []
    for chosen in (nullcontext(), programmed(model)):
        with torch.no_grad(), chosen:
            state = model.init_state(2, 6)
            model(tokens[:, :5], state, seq_idx=ids)
            found.append(model(tokens[:, 5:], state))
            with pytest.raises(ValueError, match="6"):
                model(tokens[:, :1], state)
    assert error(*found) < 1e-5


def test_more_threads_than_cores_compute_the_same():
    model, tokens, before = scrambled("mamba_nano"), torch.randint(0, 256, (1, 6)), torch.get_num_threads()
    found = []
    with torch.no_grad(), programmed(model):
        state = model.init_state(1)
        model(tokens[:, :3], state)
        for threads, held in ((1, state.clone()), (8, state.clone())):
            torch.set_num_threads(threads)
            try:
                found.append(torch.cat([model(tokens[:, t : t + 1], held) for t in (3, 4, 5)]))
            finally:
                torch.set_num_threads(before)
    assert torch.equal(*found)


def test_records_say_what_they_cannot_hold():
    with pytest.raises(ValueError, match="finite"):
        Program(1).norm(Program(1).empty(4), None, float("inf"))


def test_an_operation_of_nothing_is_refused():
    """Those behind it would wait for it for ever."""
    with pytest.raises(ValueError, match="at least one chunk, got 0"):
        Program(1).add(0, 0)

"""Mixture-of-Depths: the plain model at capacity 1, the paper's formula, what is computed, the causal predictor."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.kernels.flops import flop_counter
from zoo.layers.attention.keys import EMPTY
from zoo.layers.depth import ActiveTokens, TokenRouter, top_share

DIM, KEYS, HIDDEN, PREDICTOR = 128, 64, 384, 64
nano = partial(zoo.create_model, "mod_nano")
close = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-9)


def text(batch: int = 2, length: int = 30) -> Tensor:
    return torch.randint(0, 256, (batch, length))


def routed(**changes: Any) -> Any:
    """A float64 model in evaluation whose predictors choose some of the tokens, in each row another number of them."""
    model: Any = nano(dtype=torch.float64, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model(text())
    assert all(0.2 < share < 0.8 for name, share in zoo.activity(model).items() if name.endswith("processed"))
    return model


def choose(router: TokenRouter, x: Tensor, seq_idx: Tensor | None = None) -> tuple[ActiveTokens, Tensor, Tensor]:
    return router(x, ActiveTokens.of(x, seq_idx=seq_idx))


def published_block(block: Any, x: Tensor, chosen: list[int]) -> Tensor:
    """x (T, D) after a routed block, by the paper's formula: one chosen token at a time, attention a pair at a time."""
    half = block.mixer.head_dim // 2
    frequency = 10000.0 ** -(torch.arange(half).double() / half)

    def rotated(vector: Tensor, position: int) -> Tensor:
        heads = vector.unflatten(-1, (-1, 2 * half))
        return torch.complex(heads[:, :half], heads[:, half:]) * torch.exp(1j * position * frequency)

    q, k, v = (proj(block.norm(x)) for proj in (block.mixer.q_proj, block.mixer.k_proj, block.mixer.v_proj))
    y = x.clone()
    for i in chosen:
        past = [j for j in chosen if j <= i]
        queries = rotated(q[i], i)  # (H, d / 2)
        keys = torch.stack([rotated(k[j], j).repeat_interleave(2, 0) for j in past], dim=1)  # (H, past, d / 2)
        values = torch.stack([v[j].unflatten(-1, (-1, 2 * half)).repeat_interleave(2, 0) for j in past], dim=1)
        scores = (queries[:, None].conj() * keys).sum(-1).real / (2 * half) ** 0.5
        mixed = block.mixer.out_proj((scores.softmax(-1)[..., None] * values).sum(1).flatten())
        output = mixed + block.mlp(block.mlp_norm(x[i] + mixed))
        y[i] = x[i] + (x[i] @ block.router.router.weight[0] + block.router.router.bias) * output
    return y


@pytest.mark.parametrize("training", [True, False])
def test_capacity_one_is_the_plain_model(training):
    """With w = 0 and b = 1 every token's weight is 1."""
    plain: Any = zoo.create_model("transformer_nano", depth=4, dtype=torch.float64)
    model: Any = nano(capacity=1.0, dtype=torch.float64)
    ones = {name: tensor for name, tensor in model.state_dict().items() if ".router." in name}
    assert {name: tuple(tensor.flatten().shape) for name, tensor in ones.items()} == {
        f"blocks.{i}.router.router.{part}": (n,) for i in (1, 3) for part, n in (("weight", 128), ("bias", 1))
    }
    model.load_state_dict(plain.state_dict() | {n: t.zero_() if n.endswith("weight") else t for n, t in ones.items()})
    model.train(training)
    plain.train(training)
    tokens, seq_idx = text(), torch.tensor([[-1] * 4 + [0] * 9 + [1] * 17, [0] * 30])
    close(model(tokens), plain(tokens))
    close(model(tokens, seq_idx=seq_idx)[0, 4:], plain(tokens, seq_idx=seq_idx)[0, 4:])
    states = [m.init_state(2) for m in (model, plain)]
    for part in tokens.split([7, 1, 22], dim=1):
        close(model(part, states[0]), plain(part, states[1]))
    gradients = [
        torch.autograd.grad(m(tokens, labels=tokens), [p for n, p in m.named_parameters() if ".router." not in n])
        for m in (model, plain)
    ]
    for a, b in zip(*gradients, strict=True):
        close(a, b)


def test_training_is_the_papers_formula_and_leaves_the_others_bit_for_bit():
    model = routed(capacity=0.3).train()
    block, x = model.blocks[1], torch.randn(3, 20, DIM, dtype=torch.float64)
    score = x @ block.router.router.weight[0]
    chosen = [sorted(row.topk(6).indices.tolist()) for row in score]
    y = block(x)
    for row in range(3):
        close(y[row], published_block(block, x[row], chosen[row]))
        others = [i for i in range(20) if i not in chosen[row]]
        assert torch.equal(y[row, others], x[row, others])


def test_evaluation_is_the_same_formula_for_the_predicted_tokens():
    block, x = routed().blocks[1], torch.randn(3, 20, DIM, dtype=torch.float64)
    chosen = [row.nonzero()[:, 0].tolist() for row in block.router.predictor(x)[..., 0] > 0]
    assert len({len(row) for row in chosen}) > 1
    y = block(x)
    for row in range(3):
        close(y[row], published_block(block, x[row], chosen[row]))


def test_every_so_many_blocks_are_routed_and_their_parameters_are_counted():
    model: Any = nano(depth=7, routed_every=3)
    assert [type(block).__name__ for block in model.blocks] == ["Block", "Block", "MoDBlock"] * 2 + ["Block"]
    plain: Any = nano(router_bias=False)
    assert plain.blocks[1].router.router.bias is None
    dense = zoo.model_info("transformer_130m").num_parameters
    router, predictor = 768 + 1, 768 * 64 + 64 + 64 + 1
    assert zoo.model_info("mod_130m").num_parameters == dense + 6 * (router + predictor)


def cost(model: Any, tokens: Tensor) -> int:
    with flop_counter(display=False) as counter, torch.no_grad():
        model(tokens)
    return counter.get_total_flops()


def block_cost(tokens: int) -> int:
    """Projections, attention and feed-forward layer of one block on so many tokens."""
    return 2 * tokens * (2 * DIM * DIM + 2 * DIM * KEYS + 3 * DIM * HIDDEN) + 4 * tokens * tokens * DIM


@pytest.mark.parametrize("capacity", [0.0625, 0.125, 0.5, 0.75])
def test_cost_follows_the_capacity(capacity):
    tokens, k = text(1, 128), int(capacity * 128)
    choosing = 2 * 128 * (DIM + DIM * PREDICTOR + PREDICTOR)  # router and predictor
    dense = cost(zoo.create_model("transformer_nano", depth=4), tokens)
    assert cost(nano(capacity=capacity), tokens) == dense - 2 * (block_cost(128) - block_cost(k) - choosing)


def test_cost_in_evaluation_and_decoding_follows_the_tokens_chosen():
    model, tokens = routed(), text(1, 128)
    choosing = 2 * 128 * (DIM + DIM * PREDICTOR + PREDICTOR)
    found = cost(model, tokens)
    chosen = [round(128 * float(block.router.activity["processed"])) for block in model.blocks[1::2]]
    dense = cost(zoo.create_model("transformer_nano", depth=4, dtype=torch.float64), tokens)
    assert found == dense - sum(block_cost(128) - block_cost(k) - choosing for k in chosen)
    state, costs = model.init_state(1), {0: set(), 1: set(), 2: set()}
    for t in range(20):
        attention = 4 * DIM * sum(s.filled for s in state)
        found = cost(partial(model, state=state), tokens[:, t : t + 1])
        blocks = sum(int(block.router.activity["processed"]) for block in model.blocks[1::2])
        costs[blocks].add(blocks)
        assert found <= attention + (2 + blocks) * block_cost(1) + 2 * choosing // 128 + 2 * DIM * 256
    assert all(costs.values())


def test_state_holds_the_chosen_tokens_only():
    model, tokens = routed(), text(3, 30)
    state = model.init_state(3, max_length=1000)
    assert [s.key.shape[2] for s in state] == [1000, 125] * 2
    whole, logits = model(tokens), []
    for part in tokens.split([11, 1, 1, 17], dim=1):
        logits.append(model(part, state))
    close(torch.cat(logits, dim=1), whole)
    streams: list[Tensor] = []
    for block in model.blocks[1::2]:
        block.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))
    model(tokens)
    for block, cache, x in zip(model.blocks[1::2], state[1::2], streams, strict=True):
        chosen = block.router.predictor(x)[..., 0] > 0
        held = cache.keys().position
        assert torch.equal((held != EMPTY).sum(1), chosen.sum(1)) and len(set(chosen.sum(1).tolist())) > 1
        for row in range(3):
            assert torch.equal(held[row][held[row] != EMPTY], chosen[row].nonzero()[:, 0])


def test_packed_and_padded_sequences_split_anywhere_crop_and_continue():
    model, tokens = routed(), text(2, 30)
    seq_idx = torch.tensor([[-1] * 4 + [0] * 9 + [1] * 17, [5] * 12 + [3] * 18])
    whole = model(tokens, seq_idx=seq_idx)
    separate = [model(tokens[:1, a:b]) for a, b in ((4, 13), (13, 30))]
    close(whole[:1, 4:], torch.cat(separate, dim=1))
    for cut in (2, 8, 13, 20):
        state = model.init_state(2)
        parts = [model(tokens[:, a:b], state, seq_idx=seq_idx[:, a:b]) for a, b in ((0, cut), (cut, 22))]
        parts += [model(tokens[:, t : t + 1], state) for t in range(22, 30)]  # without ids: the present sequence
        close(torch.cat(parts, dim=1)[0, 4:], whole[0, 4:])
        close(torch.cat(parts, dim=1)[1], whole[1])
        state.crop(24)
        close(model(tokens[:, 24:], state), whole[:, 24:])


def test_training_chooses_within_each_packed_sequence_and_never_padding():
    router = TokenRouter(8, 0.25)
    seq_idx = torch.tensor([[-1] * 5 + [7] * 8 + [2] * 3 + [-3] * 4])
    tokens, _, _ = choose(router, torch.randn(1, 20, 8), seq_idx)
    chosen = tokens.index[tokens.valid]
    assert ((chosen >= 5) & (chosen < 13)).sum() == 2 and ((chosen >= 13) & (chosen < 16)).sum() == 1
    assert len(chosen) == 3 and router.activity["processed"] == pytest.approx(3 / 11)


def test_highest_scores_of_each_group():
    score = torch.randint(0, 6, (4, 40)).double()  # with ties
    groups = torch.randint(-1, 4, (4, 40))
    found = top_share(score, 0.3, groups)
    for row in range(4):
        expected = torch.zeros(40, dtype=torch.bool)
        for group in range(4):
            members = [i for i in range(40) if groups[row, i] == group]
            best = sorted(members, key=lambda i: (-score[row, i].item(), i))[: math.ceil(0.3 * len(members))]
            expected[best] = True
        assert torch.equal(found[row], expected)
    assert torch.equal(top_share(score, 0.3), top_share(score, 0.3, torch.full_like(groups, 9)))


def test_predictor_learns_the_choice():
    """Of one sequence in 8 dimensions, long enough that the best share is what exceeds a fixed score."""
    router = TokenRouter(8, 0.25)
    optimizer = torch.optim.Adam(router.parameters(), 1e-2)
    for _ in range(150):
        choose(router, torch.randn(4, 512, 8))
        optimizer.zero_grad()
        router.auxiliary_losses["depth_predictor"].backward()
        optimizer.step()
    choose(router.eval(), torch.randn(4, 512, 8))
    assert router.activity["agreement"] > 0.95  # to choose none agrees in 0.75
    assert abs(router.activity["processed"] - 0.25) < 0.03


def test_predictor_teaches_the_model_nothing():
    model = nano()
    assert not zoo.auxiliary_losses(model)
    model(text(8, 64))
    zoo.auxiliary_losses(model)["depth_predictor"].backward()
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert taught == {name for name, _ in model.named_parameters() if ".predictor." in name}


def test_router_learns_through_the_weight_of_its_tokens_alone():
    router, x = TokenRouter(8, 0.25).double(), torch.randn(2, 12, 8, dtype=torch.float64, requires_grad=True)
    (tokens, rows, weight), output = choose(router, x), torch.randn(2, 3, 8, dtype=torch.float64)
    direction = torch.randn(2, 12, 8, dtype=torch.float64)
    (tokens.add(x.detach(), weight[..., None] * output) * direction).sum().backward()
    chosen = direction.take_along_dim(tokens.index[..., None], 1)
    expected = torch.einsum("bk,bkd->d", (output * chosen).sum(-1), rows.detach())
    assert router.router.weight.grad is not None
    close(router.router.weight.grad[0], expected)


def test_weights_stay_wide_under_autocast():
    router, x = TokenRouter(DIM, 0.5), torch.randn(1, 300, DIM)
    tokens, _, weight = choose(router, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _, found_weight = choose(router, x)
    assert torch.equal(found.index, tokens.index) and torch.equal(found_weight, weight)


def test_compiled_training_computes_the_chosen_tokens_and_export_any_choice():
    torch.compiler.reset()
    model = nano(dtype=torch.float64)
    tokens = text()
    seen: list[int] = []
    model.blocks[1].mlp.register_forward_hook(lambda _, inputs, y: seen.append(y.shape[1]))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(compiled(tokens), model(tokens))
    assert set(seen) == {4}
    model, tokens = routed(), text()
    close(torch.export.export(model, (text(),)).module()(tokens), model(tokens))


def test_copies_do_not_hold_the_latest_pass():
    router = TokenRouter(8, 0.25)
    choose(router, torch.randn(1, 9, 8))
    for again in (copy.deepcopy(router), pickle.loads(pickle.dumps(router))):
        assert again.activity == again.auxiliary_losses == {} != router.activity


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"capacity": 0.0}, r"capacity, a share of the tokens, must lie in \(0, 1\], got 0.0"),
        ({"capacity": 256}, "got 256"),
        ({"routed_every": 5}, "routed_every must be at most depth.*got 5, depth 4"),
        ({"predictor_dim": 0}, "predictor_dim must be a positive integer"),
    ],
)
def test_options_out_of_range_say_the_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        nano(**changes)

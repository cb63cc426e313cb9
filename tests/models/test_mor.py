"""Mixture-of-Recursions: its limits, a reference without gathering, what is skipped, what is cached, what is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.kernels.flops import flop_counter
from zoo.layers.depth import ActiveTokens, ExpertChoice, TokenChoice
from zoo.layers.positions import rotary_embedding

VOCAB, LENGTH = 50, 40
SMALL = {"vocab_size": VOCAB, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48, "dtype": torch.float64}
ROUTED = {
    "expert": {},
    "expert-shared": {"share_kv": True},
    "expert-cycle": {"sharing": "cycle", "depth": 2, "auxiliary_router": True},
    "expert-sequence": {"sharing": "middle_sequence", "depth": 5, "num_recursions": 2},
    "token": {"router": "token_choice"},
    "token-shared": {"router": "token_choice", "share_kv": True, "sharing": "cycle", "num_recursions": 4},
    "every": {"router": "every_token", "share_kv": True},
    "expert-hybrid": {"share_kv": True, "refresh_kv": True},
    "expert-mlp": {"scorer": "mlp", "gate": "tanh", "auxiliary_router": True, "temperature": 0.7},
    "token-sigmoid": {"router": "token_choice", "gate": "sigmoid", "gate_scale": 0.1, "scorer": "mlp"},
    "token-hybrid": {"router": "token_choice", "share_kv": True, "refresh_kv": True, "num_recursions": 4},
}


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    model: Any = zoo.create_model("mor_nano", **{**SMALL, "depth": 4, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def text(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, VOCAB, (batch, length))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def shared_blocks(model: Any) -> list[Any]:
    return list(model.blocks[model.ends : len(model.blocks) - model.ends])


def route(model: Any, depth: Callable[[int], int]) -> Any:
    """Token t, whatever it is, passes ``depth(t)`` recursions; works on one call from position 0 only."""

    def forward(self, x, tokens, step, *, sampling=True):
        wanted = torch.tensor([depth(t) for t in range(x.shape[1])]).expand(x.shape[:2])
        active, h = [], x
        for r in range(self.num_recursions):
            tokens, (h, wanted) = tokens.keep(wanted > r, h, wanted)
            update = 0.3 * step(r, h, tokens)
            x, h = tokens.add(x, update), h + update
            active.append(tokens)
        self.publish(active, {})
        return x

    model.recursion.forward = forward.__get__(model.recursion)
    return model


def attend(mixer: Any, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Attention of all tokens to all tokens of ``source`` (the normed input of the keys) that the mask allows."""
    split = [p(i).unflatten(-1, (-1, mixer.head_dim)) for p, i in
             ((mixer.q_proj, x), (mixer.k_proj, source), (mixer.v_proj, source))]  # fmt: skip
    positions = torch.arange(x.shape[1])
    q, k = (rotary_embedding(heads, positions).transpose(1, 2) for heads in split[:2])
    k, v = (t.repeat_interleave(mixer.num_heads // mixer.num_kv_heads, 1) for t in (k, split[2].transpose(1, 2)))
    scores = (q @ k.mT / mixer.head_dim**0.5).masked_fill(~mask[:, None], -torch.inf)
    return mixer.out_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(2))


def score(router: Any, x: Tensor, r: int) -> Tensor:
    if isinstance(router, nn.ModuleList):
        router, r = router[r], 0
    if isinstance(router, nn.Sequential):
        x, router = F.gelu(x @ router[0].weight.T), router[2]
    return x @ router.weight[r]


def dense_recursions(model: Any, x: Tensor, best: bool) -> tuple[Tensor, Tensor]:
    """The recursions by masks: everything is computed for all tokens and thrown away where they are not active.

    Also the depth of each token; ``best``: expert-choice takes its training capacity.
    """
    c, router, blocks = model.config, model.recursion, shared_blocks(model)
    causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    active, first, sources, begin = torch.ones(x.shape[:2]).bool(), None, {}, x
    depth, h = torch.zeros(x.shape[:2]), x
    for r in range(c.num_recursions):
        if isinstance(router, ExpertChoice):
            logits = score(router.router, h / c.temperature, r)
            if best:
                kept = logits.masked_fill(~active, -torch.inf).topk(
                    x.shape[1] * (c.num_recursions - r) // c.num_recursions
                )
                active = torch.zeros_like(active).scatter(1, kept.indices, True)
            elif r:
                votes = logits if router.sampler is None else score(router.sampler, h / c.temperature, r)
                active = active & (votes > 0)
        elif isinstance(router, TokenChoice):
            logits = torch.stack([score(router.router, begin / c.temperature, i) for i in range(c.num_recursions)], -1)
            chance = 0.1 * logits.sigmoid() if c.gate == "sigmoid" else logits.softmax(-1)
            active = chance.argmax(-1) >= r
        first = active if first is None else first
        keys_of = first if c.share_kv else active
        f = h
        for index, number in enumerate(model.plan[r]):
            block, normal = blocks[number], blocks[number].norm(f)
            if r == 0 or not c.share_kv:
                sources[index] = normal
            source = sources[index]
            if c.refresh_kv and r > 0:
                source = torch.where(active[..., None], normal, source)
            f = f + attend(block.mixer, normal, source, causal & keys_of[:, None])
            f = f + block.mlp(block.mlp_norm(f))
        if isinstance(router, ExpertChoice):
            new = h + router.scale * (logits.tanh() if c.gate == "tanh" else logits.sigmoid())[..., None] * f
        elif isinstance(router, TokenChoice):
            last = chance.argmax(-1) == r
            new = torch.where(last[..., None], begin + chance.amax(-1, keepdim=True) * f, f)
        else:
            new = f
        h = torch.where(active[..., None], new, h)
        depth = depth + active
    return h, depth


@pytest.mark.parametrize("case", ROUTED)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gathering_equals_masking(case, mode):
    model, tokens = small(**ROUTED[case]), text()
    x = model.embed(tokens)
    for block in model.blocks[: model.ends]:
        x = block(x)
    expected, depth = dense_recursions(model, x, best=mode == "train")
    for block in model.blocks[len(model.blocks) - model.ends :]:
        expected = block(expected)
    close(getattr(model, mode)()(tokens), model.head(model.norm(expected)))
    counts = [(depth > r).sum() for r in range(model.config.num_recursions)]
    assert model.recursion.activity["tokens_per_recursion"].tolist() == counts
    assert model.recursion.activity["mean_depth"] == depth.mean()
    assert case == "every" or depth.unique().numel() == model.config.num_recursions


@pytest.mark.parametrize("case", ROUTED)
def test_decoding_packed_and_padded_equals_each_sequence_by_itself(case):
    model, tokens = small(**ROUTED[case]), text()
    seq_idx = torch.tensor([[-1] * 3 + [0] * 9 + [1] * 28, [4] * 14 + [2] * 26])
    rows = [(0, 3, 12), (0, 12, 40), (1, 0, 14), (1, 14, 40)]
    state = model.init_state(2, max_length=LENGTH)
    parts = [model(tokens[:, a:b], state, seq_idx=seq_idx[:, a:b]) for a, b in ((0, 5), (5, 11), (11, 24))]
    parts += [model(tokens[:, t : t + 1], state) for t in range(24, LENGTH)]
    decoded, whole = torch.cat(parts, 1), model(tokens, seq_idx=seq_idx)
    for row, a, b in rows:
        alone = model(tokens[row : row + 1, a:b])[0]
        close(whole[row, a:b], alone)
        close(decoded[row, a:b], alone)


@pytest.mark.parametrize("case", ROUTED)
def test_states_crop_reorder_and_reset(case):
    model, tokens = small(**ROUTED[case]), text()
    state = model.init_state(2)
    model(tokens[:, :30], state)
    state.crop(13)
    state.reorder(torch.tensor([1, 0, 1]))
    close(model(tokens[[1, 0, 1], 13:], state), model(tokens[[1, 0, 1]])[:, 13:])
    state.reset()
    close(model(tokens[[1, 1, 0]], state), model(tokens[[1, 1, 0]]))


@pytest.mark.parametrize("sharing", ["cycle", "sequence", "middle_cycle", "middle_sequence"])
def test_recursion_without_routing_is_the_unrolled_transformer(sharing):
    """One recursion: the plain transformer, weight by weight; several: one with repeated weights."""
    tokens = text()
    for recursions in (1, 3):
        router = "expert_choice" if recursions == 1 else "every_token"
        model = small(sharing=sharing, num_recursions=recursions, router=router)
        number = model.num_unrolled_blocks()
        dense: Any = zoo.create_model("transformer_nano", **{**SMALL, "depth": number}).eval()
        last = len(model.blocks) - model.ends
        middle = [model.ends + block for blocks in model.plan for block in blocks]
        order = [*range(model.ends), *middle, *range(last, len(model.blocks))]
        weights = model.state_dict()
        unrolled = {
            f"blocks.{new}.{name.split('.', 2)[2]}": tensor
            for new, old in enumerate(order)
            for name, tensor in weights.items()
            if name.startswith(f"blocks.{old}.")
        }
        dense.load_state_dict(unrolled | {n: weights[n] for n in weights if not n.startswith("blocks.")})
        if recursions == 1:
            assert dense.state_dict().keys() == weights.keys() and number == model.config.depth
        assert torch.equal(model(tokens), dense(tokens))
        gradient = torch.autograd.grad(model(tokens, labels=tokens), model.blocks[1].mlp.w1.weight)[0]
        copies = [dense.blocks[i].mlp.w1.weight for i, old in enumerate(order) if old == 1]
        close(gradient, sum(torch.autograd.grad(dense(tokens, labels=tokens), copies)))


def test_the_three_orders_of_sharing():
    plans = {sharing: small(sharing=sharing, depth=6).plan for sharing in ("cycle", "sequence", "middle_sequence")}
    assert plans["cycle"] == [[0, 1, 2, 3, 4, 5]] * 3
    assert plans["sequence"] == [[0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [4, 4, 4, 5, 5, 5]]
    assert plans["middle_sequence"] == [[0, 0, 0, 1], [1, 1, 2, 2], [2, 3, 3, 3]]


@pytest.mark.parametrize(
    ("how", "sharing", "layers"),
    [
        ("stepwise", "middle_cycle", [[0], [1], [7], [8]]),  # one of the 7 inner layers is left out
        ("lower", "middle_cycle", [[0], [1], [2], [8]]),
        ("upper", "middle_sequence", [[0], [6], [7], [8]]),
        ("average", "middle_cycle", [[0], [1, 3, 6], [2, 5, 7], [8]]),
        ("average", "middle_sequence", [[0], [1, 2, 3], [5, 6, 7], [8]]),
        ("average", "cycle", [[0, 5], [1, 6], [2, 7], [3, 8]]),
    ],
)
def test_shared_blocks_begin_with_the_layers_of_a_transformer(how, sharing, layers):
    recursions = 2 if sharing == "cycle" else 3
    source: Any = zoo.create_model("transformer_nano", **{**SMALL, "depth": 9})
    model = small(sharing=sharing, num_recursions=recursions)
    router = model.recursion.router.weight.clone()
    model.init_from(source, how)
    for block, group in zip(model.blocks, layers, strict=True):
        close(block.mlp.w1.weight, torch.stack([source.blocks[i].mlp.w1.weight for i in group]).mean(0))
    close(model.head.weight, source.head.weight)
    assert torch.equal(model.recursion.router.weight, router)
    if how != "average":
        assert torch.equal(model.blocks[1].mixer.q_proj.weight, source.blocks[layers[1][0]].mixer.q_proj.weight)


def test_a_source_that_does_not_fit_says_the_rule():
    model, source = small(), zoo.create_model("transformer_nano", **{**SMALL, "depth": 8})
    model.init_from(source, "random")
    for other, how, message in (
        (source, "stepwize", "how must be one of .*did you mean 'stepwise'"),
        (zoo.create_model("transformer_nano", **{**SMALL, "depth": 7}), "lower", "needs at least 8 blocks.*got 7"),
        (zoo.create_model("transformer_nano", **{**SMALL, "depth": 8, "dim": 64}), "lower", "the widths of the model"),
    ):
        with pytest.raises(ValueError, match=message):
            model.init_from(other, how)


def flops(model: Any, tokens: Tensor) -> int:
    with torch.no_grad(), flop_counter(display=False) as counter:
        model(tokens)
    return counter.get_total_flops()


@pytest.mark.parametrize("share_kv", [False, True])
def test_flops_and_cache_fall_with_early_exit(share_kv):
    """Counted and weighed: of the later recursions a third of the tokens costs a third of the products of matrices and,
    as its keys are a third too where they are not shared, a ninth of the attention; exited tokens cost nothing."""
    model, tokens = small(share_kv=share_kv, depth=5), text(1, 96)
    cost, cache = {}, {}
    for name, depth in {"one": lambda t: 1, "third": lambda t: 3 if t % 3 == 0 else 1, "all": lambda t: 3}.items():
        route(model, depth)
        cost[name], state = flops(model, tokens), model.init_state(1)
        model(tokens, state)
        cache[name] = state.nbytes
    used = {n: p for n, p in model.blocks[1].named_parameters() if p.dim() == 2 and not (share_kv and n[6] in "kv")}
    assert len(used) == (5 if share_kv else 7)

    def recursion(active: int) -> int:
        return 2 * active * sum(p.numel() for p in used.values()) + 4 * 32 * active * (96 if share_kv else active)

    spent = (cost["third"] - cost["one"]) / (cost["all"] - cost["one"])
    assert spent == pytest.approx(recursion(32) / recursion(96), rel=0.01)
    one: Any = small(share_kv=share_kv, depth=5, num_recursions=1)
    assert cost["one"] == flops(one, tokens)
    layer = (2 * 2 * 8 + 1) * 8  # keys and values of two heads of 8, and a position
    if share_kv:
        assert cache["one"] == cache["third"] == cache["all"]
    else:  # three shared blocks in two later recursions; capacities 16, 32 and 96
        assert cache["third"] - cache["one"] == 6 * layer * (32 - 16)
        assert cache["all"] - cache["one"] == 6 * layer * (96 - 16)


def test_shared_keys_do_not_grow_with_the_recursions():
    tokens, held = text(), {}
    for share_kv in (False, True):
        for recursions in (1, 2, 4):
            model = small(share_kv=share_kv, num_recursions=recursions, router="every_token")
            state = model.init_state(2)
            model(tokens, state)
            held[share_kv, recursions] = (len(state), state.nbytes, model.state_size(LENGTH))
    assert held[True, 1] == held[True, 2] == held[True, 4] == held[False, 1]
    assert [held[False, r][0] for r in (1, 2, 4)] == [4, 6, 10]
    assert held[False, 4][1] - held[False, 2][1] == 2 * (held[False, 2][1] - held[False, 1][1])


def test_cache_of_a_batch_is_that_of_its_fullest_row():
    """Many steps in which one row or another is active take no place in the others."""
    mixer = small().mixers[1]
    state, x = mixer.init_state(8), torch.randn(8, 1, 32, dtype=torch.float64)
    for t in range(64):
        tokens, (h,) = ActiveTokens.of(x, [state]).keep(torch.arange(8)[:, None] == t % 8, x)
        mixer.write(h, tokens, state)
    assert state.key.shape[2] == 16 and ((state.position < 64).sum(1) == 8).all()


def test_a_token_that_exits_stays_as_it_is_and_the_choice_is_nested():
    model, seen = small(), []
    whole = torch.randn(2, 30, 32, dtype=torch.float64)

    def step(r, h, tokens):
        seen.append({(b, i) for b in range(2) for i in tokens.index[b][tokens.valid[b]].tolist()})
        return torch.ones_like(h)

    model.train()
    y = model.recursion(whole, ActiveTokens.of(whole), step, sampling=False)
    assert [len(s) for s in seen] == [60, 40, 20] and seen[2] < seen[1] < seen[0]
    once = whole + 0.1 * model.recursion.router(whole)[..., :1].sigmoid()
    for b, i in seen[0] - seen[1]:
        assert torch.equal(y[b, i], once[b, i])


def test_only_the_training_choice_looks_ahead():
    model, tokens = small().train(), text(1)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB
    assert not torch.allclose(model(tokens)[:, :-1], model(changed)[:, :-1])
    state = model.init_state(1)
    close(model(tokens, state), model.eval()(tokens))


def test_side_losses_are_the_formulas():
    tokens, x = text(), torch.randn(2, LENGTH, 32, dtype=torch.float64)
    router = ExpertChoice(32, 2, auxiliary_weight=0.7).double().train()
    router(x, ActiveTokens.of(x), lambda r, h, active: torch.zeros_like(h), sampling=False)
    first, second = (x @ router.router.weight.T).unbind(-1)
    best = torch.zeros_like(second).scatter(1, second.topk(LENGTH // 2).indices, 1.0)
    expected = F.softplus(-first).mean() + F.binary_cross_entropy(second.sigmoid(), best)
    close(router.auxiliary_losses["expert_choice"], 0.7 * expected)
    close(router.activity["agreement"].double(), ((second > 0) == (best > 0)).double().mean())
    model = small(router="token_choice", balance_weight=0.3, z_weight=0.2).train()
    x = model.blocks[0](model.embed(tokens))
    model(tokens)
    side, logits = zoo.auxiliary_losses(model), (x @ model.recursion.router.weight.T).flatten(0, 1)
    share = F.one_hot(logits.argmax(-1), 3).double().mean(0)
    close(side["depth_balance"], 0.3 * 3 * (share * logits.softmax(-1).mean(0)).sum())
    close(side["router_z"], 0.2 * logits.logsumexp(-1).square().mean())
    model.eval()(tokens)
    assert not zoo.auxiliary_losses(model)


def test_loss_free_balance_moves_the_bias_towards_the_depths_that_few_chose():
    model, tokens = small(router="token_choice", balance="loss_free", bias_speed=0.01).train(), text()
    assert set(zoo.auxiliary_losses(model)) == set()
    for part in tokens.split(1):  # accumulated passes count together
        model(part)
    assert set(zoo.auxiliary_losses(model)) == {"router_z"}
    chosen = (model.blocks[0](model.embed(tokens)) @ model.recursion.router.weight.T).softmax(-1).argmax(-1)
    load = torch.bincount(chosen.flatten(), minlength=3).double()
    zoo.after_step(model)
    close(model.recursion.selection_bias.double(), (0.01 * (load.mean() - load).sign()))
    model.recursion.selection_bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    model.eval()(tokens)
    assert model.recursion.activity["mean_depth"] == 3  # the bias decides who is chosen, and weighs nothing
    assert "recursion.selection_bias" in model.state_dict() and not model.recursion.load.any()


def test_loss_free_balance_evens_the_depths():
    model, tokens = small(router="token_choice", balance="loss_free", bias_speed=0.02).train(), text(8)

    def unevenness() -> float:
        model(tokens)
        passed = model.recursion.activity["tokens_per_recursion"].double()
        chosen = torch.cat([passed[:-1] - passed[1:], passed[-1:]])
        return float(chosen.max() - chosen.min())

    before = unevenness()
    for _ in range(30):
        zoo.after_step(model)
        after = unevenness()
    assert after < 0.4 * before


def test_z_loss_of_expert_choice_is_the_mean_square_of_the_scores():
    x = torch.randn(2, LENGTH, 32, dtype=torch.float64)
    router = ExpertChoice(32, 1, z_weight=0.3, temperature=0.5).double().train()
    router(x, ActiveTokens.of(x), lambda r, h, active: torch.zeros_like(h), sampling=False)
    close(router.auxiliary_losses["router_z"], 0.3 * (2 * x @ router.router.weight[0]).square().mean())


def test_auxiliary_router_learns_from_its_loss_alone():
    model, tokens = small(auxiliary_router=True).train(), text()
    loss, sampler = model(tokens, labels=tokens), model.recursion.sampler.weight
    (side,) = zoo.auxiliary_losses(model).values()
    touched = torch.autograd.grad(side, list(model.parameters()), allow_unused=True)
    assert [p is sampler for p in model.parameters()] == [g is not None for g in touched]
    assert torch.autograd.grad(loss, sampler, allow_unused=True) == (None,)


def test_padding_alone_gives_finite_losses():
    model, tokens = small().train(), text()
    assert torch.isfinite(model(tokens, seq_idx=-torch.ones_like(tokens))).all()
    measured = [*zoo.auxiliary_losses(model).values(), *model.recursion.activity.values()]
    assert not any(measure.any() or measure.isnan().any() for measure in measured)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"router": "token_choice"},
        pytest.param({"share_kv": True, "auxiliary_router": True}, marks=pytest.mark.slow),
    ],
)
def test_variants_compile_and_recompute(options):
    model, tokens = small(**options, num_recursions=2, depth=3), text()
    torch.compiler.reset()
    close(torch.compile(model, fullgraph=True, backend="aot_eager")(tokens), model(tokens))
    gradients = []
    for enable in (False, True):
        model.train().set_grad_checkpointing(enable)
        loss = model(tokens, labels=tokens) + sum(zoo.auxiliary_losses(model).values())
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "layers"), [("mor_135m", 29), ("mor_360m", 32), ("mor_730m", 26), ("mor_1_7b", 23)])
def test_parameters_are_a_third_of_the_unshared(name, layers):
    """Of the blocks: the first, the last, and a third of those between."""
    model: Any = zoo.create_model(name, device="meta")
    assert model.num_unrolled_blocks() == layers == 2 + 3 * (len(model.blocks) - 2)
    c = model.config
    narrow = c.dim // c.num_heads * (c.num_kv_heads or c.num_heads)
    block = 2 * c.dim * (c.dim + narrow) + 3 * c.dim * c.mlp_dim + 2 * c.dim
    shared = sum(p.numel() for p in model.blocks.parameters())
    assert shared == len(model.blocks) * block and 0.36 < shared / (layers * block) < 0.4


def test_published_counts_of_360m():
    """Table 3 of the paper, in millions without the embedding, by the number of recursions."""
    for recursions, depth, count in ((1, 32, 315), (2, 17, 167), (3, 12, 118), (4, 10, 98)):
        model: Any = zoo.create_model("mor_360m", device="meta", depth=depth, num_recursions=recursions)
        assert round(sum(p.numel() for p in model.blocks.parameters()) / 10**6) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": "expert_choise"}, "router must be one of .*did you mean 'expert_choice'"),
        ({"sharing": "middle"}, "sharing must be one of .*got 'middle'"),
        ({"depth": 2}, "keeps 2 blocks unshared, so depth must be larger: got 2"),
        ({"share_kv": True, "sharing": "sequence"}, "share_kv needs a block to meet the keys it made itself"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"gate": "softmax"}, "gate must be one of .*got 'softmax'"),
        ({"router": "token_choice", "balance": "loss_fre"}, "did you mean 'loss_free'"),
        ({"router": "token_choice", "balance": "loss_free", "bias_speed": 0.0}, "bias_speed must be above 0, got 0.0"),
        ({"refresh_kv": True}, "refresh_kv replaces shared keys and values, so it goes with share_kv=True"),
        ({"num_recursions": 0}, "num_recursions must be a positive integer, got 0"),
    ],
)
def test_options_that_do_not_fit_say_the_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("mor_nano", **changes)

"""Drama: published parts, codes and bins, losses by hand, steps and dreams, agents, wrong options and input."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, OneHotCategorical, kl_divergence

import zoo
from zoo.worlds import Bins, Drama, DramaConfig, divergence, drawn, lambda_returns, likeliest, symexp, symlog, unimix
from zoo.worlds.agent import Standardise


def built(**options: Any) -> Drama:
    torch.manual_seed(0)
    given = {"num_actions": 3, "in_chans": 1, "img_size": 8, "widths": (3, 5), "groups": 4, "classes": 5, "dim": 16}
    given |= {"head_dim": 8, "hidden_dim": 6, "agent": True, "actor_dim": 7, "critic_dim": 9, "free_nats": 0.0}
    return Drama(DramaConfig(**{**given, **options})).double()


@pytest.fixture(scope="module")
def model() -> Drama:
    return built().eval()


def frames(*shape: int) -> Tensor:
    return torch.rand(*shape, 1, 8, 8, dtype=torch.double)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_parts() -> None:
    world: Any = zoo.create_model("drama", device="meta", agent=True)
    parts = {
        "encoder": 232_272, "posterior": 1_049_600, "prior": 525_312, "decoder": 1_281_811, "reward": 197_119,
        "end": 131_841, "dynamics": 3_737_504,
    }  # fmt: skip
    assert {name: parameters(getattr(world, name)) for name in parts} == parts
    assert sum(parts.values()) == 7_155_459 == zoo.model_info("drama").num_parameters
    assert (parameters(world.agent.actor), parameters(world.agent.critic)) == (527_366, 1_444_607)
    more = zoo.create_model("drama", device="meta", num_actions=18)
    assert parameters(more) == 7_161_603


def test_codes_are_ones_and_zeros_with_the_gradient_of_probabilities() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    logs = unimix(logits, 0.1)
    close(logs.exp(), 0.9 * logits.softmax(-1) + 0.02)
    code, weight = drawn(logs), torch.randn(2, 3, 4, 5, dtype=torch.double)
    assert code.sum(-1).eq(1).all() and code.detach().unique().tolist() == [0, 1]
    parts = code, likeliest(logs), logs.exp()
    *got, want = (torch.autograd.grad((part * weight).sum(), logits, retain_graph=True)[0] for part in parts)
    for gradient in got:
        close(gradient, want)
    assert torch.equal(likeliest(logs).argmax(-1), logs.argmax(-1)) and likeliest(logs).sum() == 24
    often = drawn(logs[:1, :1].expand(2000, -1, -1, -1), torch.Generator().manual_seed(0)).mean((0, 1))
    assert (often - logs[0, 0].exp()).abs().max() < 0.05
    other = unimix(torch.randn_like(logits), 0.01)
    wanted = kl_divergence(OneHotCategorical(logits=logs), OneHotCategorical(logits=other)).sum(-1)
    close(divergence(logs, other), wanted)


def test_a_generator_draws_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of the CPU for a model on a GPU; here "meta" stands for another device."""
    drew = []

    def multinomial(shares: torch.Tensor, count: int, generator: Any = None) -> torch.Tensor:
        drew.append(shares.device)
        return torch.zeros(len(shares), count, dtype=torch.int64)

    monkeypatch.setattr(torch, "multinomial", multinomial)
    elsewhere: Any = SimpleNamespace(device=torch.device("meta"))
    made: Any = zoo.create_model("drama_nano").eval()
    assert made.act(torch.rand(2, 1, 32, 32), made.begin(2), generator=elsewhere).tolist() == [0, 0]
    assert drew == [elsewhere.device] * 2


def test_bins() -> None:
    bins, x = Bins(11, 5.0), torch.tensor([-1e9, -20.0, -1.0, 0.0, 0.3, 7.0, symexp(torch.tensor(5.0)), 1e9]).double()
    weights = bins.weights(x)
    close(weights.sum(-1), torch.ones(8).double())
    assert (weights > 0).sum(-1).max() <= 2
    inside = x.clamp(-symexp(torch.tensor(5.0)).item(), symexp(torch.tensor(5.0)).item())
    torch.testing.assert_close(bins.mean(weights.clamp_min(1e-300).log()), inside, rtol=1e-6, atol=1e-6)
    logits = torch.randn(8, 11).double()
    close(bins.losses(logits, x), -(weights * logits.log_softmax(-1)).sum(-1))
    close(symexp(symlog(x[1:6])), x[1:6])


def test_the_losses_by_hand() -> None:
    model, x, actions = built().train(), frames(3, 6), torch.randint(0, 3, (3, 6))
    rewards, ends = torch.randn(3, 6).double(), torch.rand(3, 6) < 0.3
    firsts = torch.tensor([[1, 0, 0, 1, 0, 0], [0] * 6, [0, 1, 0, 0, 0, 1]]).bool()
    torch.manual_seed(1)
    found = model(x, actions, rewards, ends, firsts, imagine=False)
    losses = model.auxiliary_losses
    torch.manual_seed(1)
    q = model.encode(x)
    codes = drawn(q).flatten(-2)
    close(found, model.decode(codes))
    memory = torch.zeros(3, 6, 16).double()
    for row in range(3):  # each episode by itself
        starts = sorted({0, *firsts[row].nonzero()[:, 0].tolist()})
        for a, b in zip(starts, [*starts[1:], 6], strict=True):
            memory[row, a:b] = model.dynamics(codes[row : row + 1, a:b], actions[row : row + 1, a:b])[0]
    p = model.expected(memory)
    kept = ~firsts[:, 1:]
    kl = kl_divergence(Categorical(logits=q[:, 1:]), Categorical(logits=p[:, :-1])).sum(-1)
    close(losses["dynamics"], kl[kept].mean())
    close(losses["representation"], 0.1 * kl[kept].mean())
    close(losses["reward"], -(model.bins.weights(rewards) * model.reward(memory).log_softmax(-1)).sum(-1).mean())
    close(losses["end"], F.binary_cross_entropy_with_logits(model.end(memory)[..., 0], ends.double()))
    assert set(losses) == {"dynamics", "representation", "reward", "end"}
    model(x)
    assert set(model.auxiliary_losses) - set(losses) == {"actor", "critic"}


def test_which_side_a_divergence_teaches() -> None:
    model = built()
    q, p = (unimix(torch.randn(2, 4, 4, 5, dtype=torch.double, requires_grad=True), 0.01) for _ in range(2))
    found = model.divergences(q, p)
    assert torch.autograd.grad(found["dynamics"], q, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(found["representation"], p, retain_graph=True, allow_unused=True) == (None,)
    model = built(free_nats=1.0)
    same = torch.cat([q[:, :1], q], 1)  # what is expected is what comes
    free = model.divergences(same, torch.cat([q, q[:, :1]], 1))
    assert free["dynamics"] == 1.0 and free["representation"] == 0.1
    (gradient,) = torch.autograd.grad(free["representation"], q)
    assert not gradient.any()


@pytest.mark.parametrize("memory", ["mamba2", "gru"])
def test_steps_equal_the_parallel_pass(memory: str) -> None:
    model = built(memory=memory).eval()
    codes, actions = torch.randn(2, 9, 20).double(), torch.randint(0, 3, (2, 9))
    whole, state = model.remember(codes, actions, None), model.dynamics.init_state(2)
    parts = [model.remember(codes[:, a:b], actions[:, a:b], None, state) for a, b in ((0, 4), (4, 5), (5, 6), (6, 9))]
    close(torch.cat(parts, 1), whole)
    firsts = torch.zeros(2, 9).bool()
    firsts[:, 5] = True
    reset = model.remember(codes, actions, firsts)
    close(reset[:, 5:], model.remember(codes[:, 5:], actions[:, 5:], None))
    close(reset[:, :5], whole[:, :5])
    released = built(memory=memory, reset_at_ends=False).eval()
    close(released.remember(codes, actions, firsts), whole)


def test_a_dream_is_what_the_parallel_pass_says(model: Drama) -> None:
    x, actions, moves = frames(2, 5), torch.randint(0, 3, (2, 5)), torch.randint(0, 3, (2, 4))
    found = model.imagine(x, actions, 4, moves=moves, generator=torch.Generator().manual_seed(3))
    seen = drawn(model.encode(x), torch.Generator().manual_seed(3)).flatten(-2)
    codes, taken = torch.cat([seen, found.codes[:, :-1]], 1), torch.cat([actions, moves], 1)
    memory = model.remember(codes, taken, None)
    close(found.features, torch.cat([found.codes, memory[:, 4:]], -1))
    close(found.rewards, model.bins.mean(model.reward(memory[:, 5:])))
    close(found.ends, model.end(memory[:, 5:])[..., 0].sigmoid())
    assert torch.equal(found.actions, moves)
    likely = model.imagine(x, actions, 4, likely=True)
    close(likely.codes, likeliest(model.expected(likely.features[..., 20:])).double().flatten(-2))
    choices = model.agent.policy(likely.features[:, :-1]).argmax(-1)  # pyright: ignore
    assert torch.equal(likely.actions, choices) and not model.training
    expected = model(x, actions)[:, -1]
    close(model.decode(likely.codes[:, :1])[:, 0], expected)


def test_acting_is_the_dream_of_what_is_seen(model: Drama) -> None:
    x, remembered, sources = frames(2, 4), model.begin(2), [torch.Generator().manual_seed(5) for _ in range(2)]
    actions = [model.act(part, remembered, generator=sources[0]) for part in x.unbind(1)]
    before, codes = torch.zeros(2, 16).double(), []
    for t in range(4):
        codes.append(drawn(model.encode(x[:, t : t + 1])[:, 0], sources[1]).flatten(-2))
        wanted = model.agent.choose(torch.cat([codes[-1], before], -1), False, sources[1])  # pyright: ignore
        assert torch.equal(actions[t], wanted)
        before = model.remember(torch.stack(codes, 1), torch.stack(actions[: t + 1], 1), None)[:, -1]
    close(remembered.features, before)
    greedy = [model.act(x[:, 0], model.begin(2), greedy=True, blind=blind, generator=sources[0]) for blind in (0, 1)]
    assert greedy[0].shape == (2,)  # at the first frame nothing was expected, and what is there is looked at


def test_returns_by_hand() -> None:
    r, e, v = torch.randn(2, 5).double(), torch.rand(2, 5).double(), torch.randn(2, 6).double()
    found = lambda_returns(r, e, v, 0.9, 0.7)
    for t in reversed(range(5)):
        after = v[:, 5] if t == 4 else found[:, t + 1]
        close(found[:, t], r[:, t] + 0.9 * (1 - e[:, t]) * (0.3 * v[:, t + 1] + 0.7 * after))
    close(lambda_returns(r, e, v, 0.9, 0.0), r + 0.9 * (1 - e) * v[:, 1:])  # one step
    sums = sum(0.9**t * r[:, t] for t in range(5)) + 0.9**5 * v[:, 5]
    close(lambda_returns(r, 0 * e, v, 0.9, 1.0)[:, 0], sums)  # all that was seen
    ended = lambda_returns(r, torch.ones_like(e), v, 0.9, 0.7)
    close(ended, r)


def test_what_the_agent_learns_from() -> None:
    model = built(gamma=0.9, lam=0.7, entropy_weight=0.1).train()
    agent: Any = model.agent
    features, actions = torch.randn(2, 4, 36).double(), torch.randint(0, 3, (2, 3))
    r, e = torch.randn(2, 3).double(), torch.rand(2, 3).double()
    agent.high.fill_(3.0)
    told = {"gamma": 0.9, "lam": 0.7, "entropy": 0.1, "slow": lambda x: 0 * agent.critic(x)}
    losses, _ = agent.losses(features, actions, r, e, lasting=torch.tensor([1.0, 0.25]), **told)
    values = model.bins.mean(agent.critic(features))
    returns = lambda_returns(r, e, values, 0.9, 0.7)
    slow = lambda_returns(r, e, torch.zeros_like(values), 0.9, 0.7)  # even logits are the value 0
    weights = torch.stack([torch.ones(2).double(), 1 - e[:, 0], (1 - e[:, 0]) * (1 - e[:, 1])], 1)
    weights = weights * torch.tensor([[1.0], [0.25]]).double()
    weights = weights / weights.sum()
    policy = Categorical(logits=agent.actor(agent.standardise(features[:, :-1])))
    actor = (returns - values[:, :-1]) / 3 * policy.log_prob(actions) + 0.1 * policy.entropy()
    close(losses["actor"], -(weights * actor).sum())
    logits = agent.critic(features[:, :-1])
    close(losses["critic"], (weights * (model.bins.losses(logits, returns) + model.bins.losses(logits, slow))).sum())
    (none,) = torch.autograd.grad(losses["actor"], agent.critic[0].weight, allow_unused=True, retain_graph=True)
    assert none is None
    low, high = returns.quantile(0.05), returns.quantile(0.95)
    zoo.after_step(model)
    close(agent.low, 0.01 * low)
    close(agent.high, 0.99 * 3 + 0.01 * high)


def test_standardised_by_all_that_was_seen() -> None:
    layer, seen = Standardise(3).double(), []
    layer.count.fill_(0)
    for size in (5, 7):
        x = 2 * torch.randn(size, 3).double() + 1
        seen.append(x)
        layer(x)
        zoo.after_step(layer)
    whole = torch.cat(seen)
    close(layer.mean, whole.mean(0))
    close(layer.variance, whole.var(0, correction=0))
    close(layer(whole), ((whole - whole.mean(0)) / (whole.var(0, correction=0) + 1e-8).sqrt()).clamp(-10, 10))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"img_size": 9}, "img_size divisible by 2 for each but the first"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"memory": "mamba"}, "unknown memory 'mamba', did you mean 'mamba2'"),
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\]"),
        ({"horizon": 0}, "horizon must be a positive integer, got 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**options)


def test_wrong_input(model: Drama) -> None:
    x, actions = frames(2, 4), torch.zeros(2, 4).long()
    for wrong in (frames(2, 4)[..., :7], frames(2), frames(2, 4).long()):
        with pytest.raises(ValueError, match=r"frames must be \(batch, steps, 1, 8, 8\) floats in \[0, 1\], got"):
            model(wrong)
    for wrong in (actions[:, :3], actions.double()):
        with pytest.raises(ValueError, match=r"actions must be integers \(2, 4\), one a frame, got"):
            model(x, wrong)
    with pytest.raises(ValueError, match="horizon must be at least 1, from one frame or more, got 0 and 4"):
        model.imagine(x, actions, 0)
    with pytest.raises(ValueError, match=r"moves must be \(2, horizon 3\), got \(2, 4\)"):
        model.imagine(x, actions, 3, moves=actions)
    with pytest.raises(ValueError, match="the model has no agent to choose actions"):
        built(agent=False).eval().imagine(x, actions, 3)
    with pytest.raises(ValueError, match=r"frames must be .* got \(2, 1, 1, 7, 7\)"):
        model.act(torch.rand(2, 1, 7, 7).double(), model.begin(2))

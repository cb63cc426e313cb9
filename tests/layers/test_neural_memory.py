"""The memory of Titans against its own definition by autograd, a step at a time, and against the delta rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.kernels import delta_rule
from zoo.layers.memory import MemoryAsContext, MemoryAsGate, MemoryAsLayer, NeuralMemory, PersistentAttention
from zoo.layers.memory.network import Gates, Learned, MemoryNetwork
from zoo.layers.ssm.delta_net import unit

B, H, D, T = 2, 2, 4, 11


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def network(depth: int, clip: float | None = None) -> MemoryNetwork:
    return MemoryNetwork(H, D, depth, expand=2, clip=clip).double()


def steps(length: int = T) -> tuple[Tensor, Tensor, Tensor, Gates]:
    """Queries, keys of norm 1, values, and gates."""
    q, k, v = torch.randn(3, B, H, length, D, dtype=torch.float64)
    rate, forget, momentum = torch.rand(3, B, H, length, dtype=torch.float64)
    return q, k / k.norm(dim=-1, keepdim=True), v, Gates(0.5 * rate, (1 - 0.5 * forget).log(), momentum.log())


def zeros(memory: MemoryNetwork) -> Learned:
    layers = [torch.zeros(B, *weight.shape, dtype=torch.float64) for weight in memory.weights]
    return Learned(layers, layers, layers)


def run(memory: MemoryNetwork, q: Tensor, k: Tensor, v: Tensor, gates: Gates, chunk: int) -> tuple[Tensor, Learned]:
    """In chunks."""
    learned, outputs = zeros(memory), []
    for begin in range(0, q.shape[2], chunk):
        part = slice(begin, begin + chunk)
        given = (t[:, :, part] for t in (q, k, v))
        y, learned = memory.learn(learned, *given, Gates(*(gate[..., part] for gate in gates)))
        learned = learned._replace(anchor=learned.change)
        outputs.append(y)
    return torch.cat(outputs, dim=2), learned


def definition(memory: MemoryNetwork, q: Tensor, k: Tensor, v: Tensor, gates: Gates, chunk: int) -> Tensor:
    """Equations 12 to 15 for each sequence and head alone, the gradient by autograd, half of the paper's loss."""

    def returned(weights: list[Tensor], x: Tensor) -> Tensor:
        for index, weight in enumerate(weights):
            x = (torch.nn.functional.gelu(x) if index else x) @ weight
        return x

    y = torch.empty_like(v)
    for b, h in ((b, h) for b in range(B) for h in range(H)):
        weights = [weight[h].detach() for weight in memory.weights]
        momentum, anchor = [torch.zeros_like(weight) for weight in weights], weights
        for t in range(q.shape[2]):
            rate, decay, keep = (gate[b, h, t] for gate in gates)
            anchor = weights if t % chunk == 0 else anchor
            leaves = [weight.clone().requires_grad_() for weight in anchor]
            loss = 0.5 * (returned(leaves, k[b, h, t]) - v[b, h, t]).square().sum()
            gradients = torch.autograd.grad(loss, leaves)
            if memory.clip is not None:
                gradients = [g * min(1.0, memory.clip / g.norm().item()) for g in gradients]
            momentum = [keep.exp() * s - rate * g for s, g in zip(momentum, gradients, strict=True)]
            weights = [decay.exp() * w + s for w, s in zip(weights, momentum, strict=True)]
            y[b, h, t] = returned(weights, q[b, h, t])
    return y


@pytest.mark.parametrize("chunk", [1, 4, 20])
@pytest.mark.parametrize(("depth", "clip"), [(1, None), (2, None), (3, None), (2, 0.2)])
def test_a_chunk_at_once_is_the_definition_step_by_step(depth, clip, chunk):
    memory, given = network(depth, clip), steps()
    close(run(memory, *given, chunk)[0], definition(memory, *given, chunk))


@pytest.mark.parametrize("forgets", [True, False])
def test_a_linear_memory_without_momentum_is_the_gated_delta_rule(forgets):
    """Whose correction is of the decayed memory; without forgetting it is DeltaNet."""
    memory, (q, k, v, gates) = network(1), steps()
    torch.nn.init.zeros_(memory.weights[0])
    decay = gates.log_decay if forgets else torch.zeros_like(gates.log_decay)
    y, learned = run(memory, q, k, v, Gates(gates.rate, decay, torch.full_like(decay, -torch.inf)), chunk=1)
    kept = decay.exp()
    o, state = delta_rule(
        *(t.transpose(1, 2) for t in (q, k, kept[..., None] * v, gates.rate / kept)),
        log_decay=decay.transpose(1, 2) if forgets else None, scale=1.0,
    )  # fmt: skip
    close(y.transpose(1, 2), o)
    close(learned.change[0], state)


def test_what_the_gates_can_do():
    """Forgetting all leaves the momentum, and without learning the first weights decay."""
    memory, (q, k, v, gates) = network(2), steps()
    decay, off = gates.log_decay.clone(), torch.zeros_like(gates.rate)
    decay[..., -1] = -torch.inf
    _, learned = run(memory, q, k, v, gates._replace(log_decay=decay), chunk=T)
    close(torch.cat([(w + c - s).flatten() for w, c, s in zip(
        memory.weights, learned.change, learned.momentum, strict=True)]), torch.zeros(B * memory.numbers).double()
    )  # fmt: skip
    y, _ = run(memory, q, k, v, gates._replace(rate=off), chunk=3)
    kept = gates.log_decay.cumsum(-1).exp()[..., None]
    hidden = torch.nn.functional.gelu(kept * (q @ memory.weights[0]))
    close(y, kept * (hidden @ memory.weights[1]))


def test_the_outer_loss_differentiates_through_the_gradients():
    """Second derivatives of the inner loss among them."""
    memory, (q, k, v, gates) = network(2), steps(4)
    inputs = [t[:1].clone().requires_grad_() for t in (q, k, v, *gates)]
    learned = Learned(*([layer[:1] for layer in layers] for layers in zeros(memory)))

    def outputs(*given: Tensor) -> Tensor:
        between = memory.learn(learned, *(t[:, :, :2] for t in given[:3]), Gates(*(t[..., :2] for t in given[3:])))[1]
        between = between._replace(anchor=between.change)
        return memory.learn(between, *(t[:, :, 2:] for t in given[:3]), Gates(*(t[..., 2:] for t in given[3:])))[0]

    assert torch.autograd.gradcheck(outputs, inputs)


def test_a_clipped_memory_stays_finite_where_another_does_not():
    """Values of size 30, over and over, to a memory of two matrices."""
    q, k, v, gates = steps(60)
    given = q, k, 30 * v, gates._replace(rate=torch.ones_like(gates.rate))
    assert not run(network(2), *given, chunk=6)[0].isfinite().all()
    assert run(network(2, clip=1.0), *given, chunk=6)[0].abs().max() < 1e6


def test_memory_as_context_is_its_equations_step_by_step():
    """Each step attends to the learned keys, and to what the memory returned for its segment's steps and these."""
    mixer, x = MemoryAsContext(8, H, segment=3, num_persistent=2).double(), torch.randn(1, 8, 8, dtype=torch.float64)
    memory, silu = mixer.memory, torch.nn.functional.silu
    projected = torch.nn.functional.pad(mixer.in_proj(x), (0, 0, 3, 0))
    taps = mixer.conv1d.weight[:, 0]
    steps = torch.stack([(projected[0, t : t + 4] * taps.mT).sum(0) for t in range(8)])
    asked, q, k, v = steps.view(8, 4, H, D).unbind(1)  # (T, H, d)
    learned, outputs = memory.empty(1, x), []
    for t in range(8):
        if t % 3 == 0:
            learned = learned._replace(anchor=learned.change)
            keys, values = [mixer.persistent_keys], [mixer.persistent_values]
        h = memory.network.recall(learned.anchor, unit(silu(asked[t]))[None, :, None]).flatten()
        slot = torch.tensor([t % 3])
        context, value = mixer.context_proj(h).view(2, H, D)
        turned = mixer.rotary(slot, *(vector[None, None] for vector in (q[t], context, k[t])))
        query, *new = (vector[0].transpose(0, 1) for vector in turned)  # (H, 1, d)
        keys += new
        values += [value[:, None], v[t][:, None]]
        scores = (query @ torch.cat(keys, dim=1).mT * D**-0.5).softmax(-1)
        y = (v[t] + (scores @ torch.cat(values, dim=1))[:, 0]).flatten()
        ask, key, value = (silu(part).view(1, H, 1, D) for part in mixer.memory_proj(y).chunk(3))
        gates = Gates(*memory.read_gates(y).view(3, 1, H, 1))
        m, learned = memory.network.learn(learned, unit(ask), unit(key), value, gates)
        outputs.append(mixer.out_proj(mixer.attention_norm(y) * silu(mixer.memory_norm(m.flatten()))))
    close(mixer(x)[0], torch.stack(outputs))


@pytest.mark.parametrize(
    "mixer",
    [
        NeuralMemory(8, 2, chunk_size=4),
        MemoryAsContext(8, 2, segment=4),
        *(kind(PersistentAttention(8, 2, window=4), NeuralMemory(8, 2), 8) for kind in (MemoryAsGate, MemoryAsLayer)),
    ],
)
def test_the_state_does_not_grow(mixer):
    """Of windows once they are full."""
    state, sizes = mixer.init_state(1), set()
    for length in (5, 3, 40):
        mixer(torch.randn(1, length, 8), state)
        sizes.add(state.nbytes)
    assert len(sizes) == 1 and mixer.state_size(4) == mixer.state_size(10**6)


def test_wrong_options_say_the_rule():
    for options, message in (
        ({"num_heads": 3}, "num_heads must divide dim"),
        ({"num_heads": 2, "depth": 0}, "depth must be at least 1, got 0"),
        ({"num_heads": 2, "chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"num_heads": 2, "max_rate": 0.0}, "max_rate must be"),
    ):
        with pytest.raises(ValueError, match=message):
            NeuralMemory(8, **options)

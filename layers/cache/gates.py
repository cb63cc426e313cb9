"""Which heads retrieve: gates that are learnt on passkeys hidden in random text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.attention.keys import EMPTY
from zoo.layers.cache.call import Call
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState, visible


@dataclass(frozen=True, eq=False)
class GatedHeads(Policy):
    """Every head is ``gates`` [order] (G,) of full attention and the rest of a sink and a window."""

    gates: tuple[Tensor, ...] = ()
    sink: int = 128
    recent: int = 256

    def attend(self, state: CacheState, call: Call) -> Tensor:
        """The mixture, (B, H, T, d)."""
        position, query = state.position[:, :, None], call.positions[:, None, :, None]
        near = visible(call, state.position)
        near = near & ((position < self.sink) | (query - position < self.recent) | (query == EMPTY))
        streaming = call.attention.attend(call.q, state.key, state.value, near)
        gate = self.gates[state.order].repeat_interleave(call.q.shape[1] // state.heads)[:, None, None].to(call.q.dtype)
        return gate * state.attend_all(call) + (1 - gate) * streaming


def learn_gates(
    model: Any,
    *,
    steps: int = 2000,
    lr: float = 0.02,
    weight: float = 0.05,
    sink: int = 128,
    recent: int = 256,
    length: int = 1024,
    passkeys: int = 10,
    passkey_length: int = 32,
    generator: torch.Generator | None = None,
) -> tuple[tuple[float, ...], ...]:
    r"""Gates of ``DuoAttention`` for a language model, whose own parameters stay as they are.

    .. math:: \min_\alpha \; \mathrm{mean} (h_\alpha - h)^2 + w \, \mathrm{mean} |\alpha|, \quad \alpha \in [0, 1]

    over the tokens that answer, with h the hidden states of the model and :math:`h_\alpha` those of the model whose
    heads are :math:`\alpha` of themselves and :math:`1 - \alpha` of heads with a sink and a window. A text is random
    tokens, with passkeys at random places that are all repeated at its end.

    Args:
        model: a language model.
        steps: of Adam, a text each.
        lr: its learning rate.
        weight: w.
        sink, recent: what streaming heads see.
        length: tokens of a text, without the answers.
        passkeys, passkey_length: how many there are, and their tokens.
        generator: source of the texts.

    Returns:
        A row of gates a layer, a gate a key-value head.

    Raises:
        ValueError: for texts too short for their passkeys, or a model without attention.

    Paper: Xiao et al., "DuoAttention", arXiv 2410.10819, section 2.2.
    """
    if passkeys * passkey_length > length:
        raise ValueError(f"{passkeys} passkeys of {passkey_length} tokens do not fit into a text of {length}")
    device = next(model.parameters()).device
    heads = [part.heads for part in _parts(model.init_state(1, cache=GatedHeads()))]
    gates = tuple(nn.Parameter(torch.ones(count, device=device)) for count in heads)
    optimizer = torch.optim.Adam(gates, lr=lr)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for _ in range(steps):
            tokens = passkey_text(model.config.vocab_size, length, passkeys, passkey_length, generator).to(device)
            state = model.init_state(1, cache=GatedHeads(gates, sink, recent))
            with torch.no_grad():
                wanted = _hidden(model, tokens, None)[:, length:]
            found = _hidden(model, tokens, state)[:, length:]
            loss = (found - wanted).square().mean() + weight * torch.cat(gates).abs().mean()
            for gate, gradient in zip(gates, torch.autograd.grad(loss, gates), strict=True):
                gate.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for gate in gates:
                    gate.clamp_(0, 1)
    finally:
        for module, training in modes:
            module.training = training
    return tuple(tuple(gate.tolist()) for gate in gates)


def passkey_text(
    vocab_size: int, length: int, passkeys: int, passkey_length: int, generator: torch.Generator | None = None
) -> Tensor:
    """Random tokens (1, length) with passkeys that do not overlap, and then all of these again, in another order."""
    text = torch.randint(vocab_size, (length,), generator=generator)
    free = length - passkeys * passkey_length
    starts = torch.randint(free + 1, (passkeys,), generator=generator).sort().values
    starts = starts + passkey_length * torch.arange(passkeys)
    places = starts[torch.randperm(passkeys, generator=generator), None] + torch.arange(passkey_length)
    return torch.cat([text, text[places.flatten()]])[None]


def _parts(states: Any) -> list[CacheState]:
    from zoo.layers.cache.pruning import governed_parts

    return list(governed_parts(states))


def _hidden(model: Any, tokens: Tensor, state: Any) -> Tensor:
    return model.forward_norm(model.forward_blocks(model.embed(tokens), state, None))

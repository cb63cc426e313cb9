"""From policies to the states of a model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from zoo.layers.attention.state import KeyValueState
from zoo.layers.cache.names import policy_of
from zoo.layers.cache.policy import Policy
from zoo.layers.cache.state import CacheState
from zoo.layers.cache.surprise import tell_surprise
from zoo.layers.state import State
from zoo.layers.states import JointState, parts

Cache = Policy | str | Mapping[int, "Policy | str"] | None


def assigned(cache: Cache, count: int) -> list[Policy | None]:
    """The policy of each of ``count`` mixers.

    Raises:
        ValueError: for a number of no mixer. TypeError: for what is no policy.
    """
    if cache is None or isinstance(cache, Policy | str):
        return [None if cache is None else policy_of(cache)] * count
    if not isinstance(cache, Mapping):
        raise TypeError(
            "cache must be a policy of zoo.cache, such as zoo.cache.StreamingLLM(), its name, or a mapping from "
            f"numbers of mixers to policies, got {cache!r}"
        )
    policies: list[Policy | None] = [None] * count
    for index, policy in cache.items():
        if not isinstance(index, int) or not -count <= index < count:
            raise ValueError(
                f"cache maps numbers of the model's {count} mixers to policies, got a policy for {index!r}"
            )
        policies[index] = policy_of(policy)
    return policies


def governed(states: Sequence[State], policies: Sequence[Policy | None]) -> list[State]:
    """The states of mixers, those of attention under their policies.

    Raises:
        ValueError: for no attention that remembers everything, or latent attention that a policy cannot read.
    """
    layers = [any(type(part) is KeyValueState for part in parts(state)) for state in states]
    if not any(layer and policy is not None for layer, policy in zip(layers, policies, strict=True)):
        raise ValueError(
            "a cache policy governs attention that would remember everything, and there is none: the states are "
            f"{', '.join(sorted({type(part).__name__ for state in states for part in parts(state)}))}; leave it out"
        )
    found = []
    for index, (state, policy) in enumerate(zip(states, policies, strict=True)):
        sharing = [layer and other == policy for layer, other in zip(layers, policies, strict=True)]
        place = {"layer": index, "layers": sum(sharing), "order": sum(sharing[:index])}
        found.append(state if policy is None else _under(policy, state, place))
    return found


def tell(states: Sequence[State], tokens: Tensor) -> None:
    """Tell the states of all layers the tokens (B, T) of a call, before it, and whose slots to fetch meanwhile."""
    held = [part for state in states for part in parts(state) if isinstance(part, CacheState)]
    for part, following in zip(held, [*held[1:], None], strict=True):
        part.text, part.following = tokens, None
        if following is not None and following.policy.store.prefetches:
            part.following = weakref.ref(following)


def finish(states: Sequence[State], tokens: Tensor, hidden: Tensor, read_out: Callable[[Tensor], Tensor]) -> None:
    """Show the states of all layers to their policies, after a call of tokens (B, T), and tell them how much each was
    a surprise: ``read_out`` makes logits of hidden (B, T, dim)."""
    held = [part for state in states for part in parts(state) if isinstance(part, CacheState)]
    tell_surprise(held, tokens, hidden, read_out)
    for policy in {part.policy: None for part in held}:
        if type(policy).after_layers is not Policy.after_layers:
            governed = [part for part in held if part.policy == policy]
            if governed[0].committed is None:
                policy.after_layers(governed)


def _under(policy: Policy, state: State, place: dict[str, int]) -> State:
    if isinstance(state, JointState):
        return state.of(_under(policy, part, place) for part in state.parts)
    if type(state) is not KeyValueState:
        return state
    if state.latent and policy.channels:
        raise ValueError(
            f"{type(policy).__name__} reads the keys of every head, and latent attention keeps one vector for all: "
            "take another policy, or a mapping that leaves this layer out"
        )
    return policy.build(state.key[:, :, :0], state.value[:, :, :0], latent=state.latent, **place)

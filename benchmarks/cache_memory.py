"""What a long text takes under a budget: the slots and bytes held while it is read in chunks, and after it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch

from zoo.cache import H2O, PrefixKV, SnapKV, StreamingLLM
from zoo.cache import Policy as CachePolicy
from zoo.layers.cache.pruning import governed_parts

LENGTH, BUDGET, CHUNK, STEPS = 32768, 1024, 1024, 32
BOUND = 1.2  # of the budget's bytes


def policies(budget: int) -> dict[str, CachePolicy]:
    """Those that hold no more than a budget after a chunk; of SnapKV, what is generated is added."""
    return {
        "streaming_llm": StreamingLLM(4, budget - 4),
        "h2o": H2O(budget // 2, budget // 2),
        "snapkv": SnapKV(budget),
        "prefixkv": PrefixKV(budget),
    }


def watched(policy: CachePolicy, seen: list[int]) -> CachePolicy:
    """The same policy, which notes how many slots there are whenever tokens attend."""
    kind = type(policy)

    def attend(self: Any, state: Any, call: Any) -> torch.Tensor:
        seen.append(state.filled)
        return kind.attend(self, state, call)

    watching = type(kind.__name__, (kind,), {"attend": attend})
    return watching(**{field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)})


@torch.inference_mode()
def memory(
    model: Any, *, length: int = LENGTH, budget: int = BUDGET, chunk: int = CHUNK, steps: int = STEPS
) -> list[dict[str, Any]]:
    """A record a policy: the most slots that there were in a call, those held at the end, and their bytes.

    Slots are means over the layers, between which PrefixKV divides the budget as it finds best. ``bytes_of_budget``:
    the memory at the end over that of the slots that the policy may hold.
    """
    tokens = torch.randint(1, 128, (1, length + steps), generator=torch.Generator().manual_seed(0))
    records = []
    for name, policy in policies(budget).items():
        seen: list[int] = []
        state, started = model.init_state(1, cache=watched(policy, seen)), time.perf_counter()
        for start in range(0, length, chunk):
            model(tokens[:, start : min(length, start + chunk)], state, logits_to_keep=1)
        layers = len(list(governed_parts(state.states)))
        most = max(sum(seen[call : call + layers]) for call in range(0, len(seen), layers)) // layers
        for place in range(length, length + steps):
            model(tokens[:, place : place + 1], state)
        records.append(
            {"method": name, "length": length, "budget": budget, "chunk": chunk, "steps": steps}
            | {"most_in_prefill": most, "seconds": time.perf_counter() - started}
            | held_against(list(governed_parts(state.states)), policy, length + steps, steps, budget)
        )
    return records


def held_against(parts: Sequence[Any], policy: CachePolicy, tokens: int, steps: int, budget: int) -> dict[str, Any]:
    """Slots of a layer, bytes of all, and these over what the policy promises."""
    slots, size = sum(part.filled for part in parts) // len(parts), sum(part.nbytes for part in parts)
    allowed = policy.most_slots(tokens, steps) or budget
    return {
        "slots": slots,
        "allowed": allowed,
        "bytes": size,
        "bytes_of_budget": size / sum(part.slot_bytes * allowed for part in parts),
        "dense_bytes": sum(tokens * 2 * part.key[0, :, :1].nbytes for part in parts),
    }

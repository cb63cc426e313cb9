"""What a process sends while others compute with it, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# operator -> bytes that a process sends of a tensor of S bytes among n, by an algorithm that sends the least
SHARES = {
    "all_reduce": lambda size, n: 2 * size * (n - 1) / n,
    "all_gather": lambda size, n: size * (n - 1),  # of its own part
    "reduce_scatter": lambda size, n: size * (n - 1) / n,
    "broadcast": lambda size, n: size,
    "send": lambda size, n: size,
}
NAMES = {
    "c10d": {
        "allreduce_": "all_reduce", "_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter",
        "alltoall_base_": "all_to_all", "broadcast_": "broadcast", "send": "send",
    },
    "_c10d_functional": {
        "all_reduce": "all_reduce", "all_reduce_": "all_reduce", "all_gather_into_tensor": "all_gather",
        "reduce_scatter_tensor": "reduce_scatter", "all_to_all_single": "all_to_all", "broadcast": "broadcast",
    },
}  # fmt: skip
WITH_OUTPUT = {"_allgather_base_", "_reduce_scatter_base_", "alltoall_base_"}  # the tensor sent is the second one


class Traffic(TorchDispatchMode):
    """Within it collectives are counted, forwards and backwards, DTensor's own among them.

    >>> with Traffic() as traffic:
    ...     model(tokens, labels=tokens).backward()
    >>> traffic.bytes, traffic.calls["all_reduce"]

    Attributes:
        calls: collective -> how often it was called.
        sent: collective -> bytes that this process sent, by an algorithm that sends the least: of an all-reduce of S
            bytes among n processes 2 S (n - 1) / n. Backends may send more.
    """

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """Of all collectives."""
        return sum(self.sent.values())

    def __torch_dispatch__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        from torch.distributed.tensor import DTensor

        if DTensor in types:  # which calls collectives of plain tensors
            return NotImplemented
        name = NAMES.get(func.namespace, {}).get(func._schema.name.split("::")[1])
        if name is not None:
            self.note(name, func._schema.name.split("::")[1], args)
        return func(*args, **(kwargs or {}))

    def note(self, name: str, operator: str, args: Any) -> None:
        """One more call of a collective."""
        tensors = [leaf for leaf in tree_leaves(list(args)) if isinstance(leaf, Tensor)]
        sent = tensors[1] if operator in WITH_OUTPUT else tensors[0]
        group = _group(args)
        self.calls[name] += 1
        if name == "all_to_all":
            splits = args[4] if operator == "alltoall_base_" else args[2]
            own = splits[group.rank()] / max(1, sum(splits)) if splits else 1 / group.size()
            self.sent[name] += round(sent.nbytes * (1 - own))
        else:
            self.sent[name] += round(SHARES[name](sent.nbytes, group.size()))


def _group(args: Any) -> dist.ProcessGroup:
    """Of the arguments of an operator: itself in c10d, its name at the end of functional ones."""
    boxed = [one for one in args if isinstance(one, torch.ScriptObject) and "ProcessGroup" in str(one._type())]
    if boxed:
        return dist.ProcessGroup.unbox(boxed[0])
    return _resolve_process_group([one for one in args if isinstance(one, str)][-1])  # type: ignore[arg-type]

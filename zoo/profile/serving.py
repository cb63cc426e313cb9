"""Serving estimated from measured runtimes: prefill and decode on machines of their own, and plans compared.

Papers: Patel et al., "Splitwise", arXiv 2311.18677; Lin et al., "APEX", arXiv 2411.17651.
"""

from __future__ import annotations

import dataclasses
import heapq
import sys
from collections.abc import Callable, Sequence
from itertools import count

from zoo.profile.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Request:
    """A query: when it comes (seconds), tokens of its prompt, and tokens that it wants."""

    arrival: float
    prompt: int
    new: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a machine takes, as profiled.

    Attributes:
        prefill: tokens of a prompt -> seconds.
        decode: (rows, tokens held by all of them) -> seconds of a step.
        most_tokens: that its memory holds for all requests.
    """

    prefill: Callable[[int], float]
    decode: Callable[[int, int], float]
    most_tokens: int


def profiled(law: Runtime, *, weight_bytes: float, token_bytes: float, memory: float) -> Machine:
    """A machine as the idealised runtime of a model on it says.

    A step reads the weights once for all rows, and what each of them keeps: the law's step after as many tokens as all
    rows hold together.

    Args:
        law: measured with one row.
        token_bytes: that a token adds to the state; 0 for a state that does not grow.
        memory: bytes, of weights and states.

    Raises:
        ValueError: for weights that leave no room for a token.
    """
    room = memory - weight_bytes
    if room < max(token_bytes, 0):
        raise ValueError(f"{weight_bytes:,.0f} bytes of weights leave no room for a token in {memory:,.0f} bytes")
    most = int(room / token_bytes) if token_bytes else sys.maxsize
    return Machine(law.prefill, lambda rows, held: law.decode(held), most)


@dataclasses.dataclass(frozen=True)
class Served:
    """What became of a request, in seconds from its arrival.

    Attributes:
        first: until its first token.
        second: until its second; None where it wanted one.
        last: until it was done.
    """

    first: float
    second: float | None
    last: float


def hand_over(state_bytes: float, bandwidth: float, layers: int = 1, layer_seconds: float | None = None) -> float:
    """Seconds by which sending the state delays the second token.

    In one piece all of it is sent after the prompt. Layer by layer each part goes while the next layer computes, and
    what remains is the last part, and what queued up where a part takes longer than a layer.

    Args:
        state_bytes: of all layers.
        bandwidth: bytes a second between the machines.
        layers: parts; 1 for one piece.
        layer_seconds: what a layer of the prompt takes to compute; None for one piece.

    Raises:
        ValueError: for a bandwidth that is not positive or no layers.
    """
    if bandwidth <= 0 or layers < 1:
        raise ValueError(f"bandwidth must be positive and layers at least 1, got {bandwidth} and {layers}")
    part = state_bytes / layers / bandwidth
    if layer_seconds is None:
        return part * layers
    return part + max(0.0, part - layer_seconds) * (layers - 1)


def colocated(requests: Sequence[Request], machine: Machine) -> list[Served]:
    """One machine for everything: between two steps it reads the prompts that fit, one after the other; all requests
    then get a token a step. A request keeps its room from the prompt on, so none is put out again.

    Raises:
        ValueError: for a request that the machine could never hold.
    """
    return _serve(requests, machine, 0.0)[1]


def split(
    requests: Sequence[Request], prompt: Machine, token: Machine, delay: Callable[[int], float], *,
    prompts: int = 1, tokens: int = 1,
) -> list[Served]:  # fmt: skip
    """Splitwise: machines for prompts, first come, first served, each request to the one that is free first; and
    machines for tokens, each request to the one with the fewest tokens to give.

    Args:
        delay: tokens of a prompt -> seconds until its state is on another machine (``hand_over``).
        prompts: machines for prompts.
        tokens: machines for tokens.

    Raises:
        ValueError: for fewer than one machine of a kind, or a request that a machine could never hold.
    """
    if prompts < 1 or tokens < 1:
        raise ValueError(f"there must be a machine of each kind, got {prompts} for prompts and {tokens} for tokens")
    free, order = [0.0] * prompts, sorted(range(len(requests)), key=lambda i: requests[i].arrival)
    firsts: dict[int, float] = {}
    for index in order:
        request = requests[index]
        done = max(heapq.heappop(free), request.arrival) + prompt.prefill(request.prompt)
        heapq.heappush(free, done)
        firsts[index] = done
    pools: list[list[int]] = [[] for _ in range(tokens)]
    loads = [0] * tokens
    for index in order:
        pool = loads.index(min(loads))
        pools[pool].append(index)
        loads[pool] += requests[index].new
    served: dict[int, Served] = {}
    for pool in pools:
        ready = [dataclasses.replace(requests[i], arrival=firsts[i] + delay(requests[i].prompt)) for i in pool]
        read = dataclasses.replace(token, prefill=lambda _: 0.0)
        times, _ = _serve(ready, read, 0.0)
        for index, stamps in zip(pool, times, strict=True):
            start = requests[index].arrival
            rest = stamps[1:]  # the first token is the prompt machine's
            last = rest[-1] if rest else firsts[index]
            served[index] = Served(firsts[index] - start, rest[0] - start if rest else None, last - start)
    return [served[i] for i in range(len(requests))]


def _serve(requests: Sequence[Request], machine: Machine, now: float) -> tuple[list[list[float]], list[Served]]:
    """Times of every token of every request, iteration by iteration."""
    for request in requests:
        if request.prompt + request.new > machine.most_tokens:
            raise ValueError(
                f"a request of {request.prompt} + {request.new} tokens does not fit the {machine.most_tokens} tokens "
                "of the machine"
            )
    order = count()
    waiting = [(r.arrival, next(order), i) for i, r in enumerate(requests)]
    heapq.heapify(waiting)
    stamps: list[list[float]] = [[] for _ in requests]
    running: list[int] = []
    while waiting or running:
        if not running and waiting:
            now = max(now, waiting[0][0])
        held = sum(requests[i].prompt + requests[i].new for i in running)
        while waiting and waiting[0][0] <= now and held + _size(requests[waiting[0][2]]) <= machine.most_tokens:
            index = heapq.heappop(waiting)[2]
            held += _size(requests[index])
            now += machine.prefill(requests[index].prompt)
            stamps[index].append(now)
            running.append(index)
        running = [i for i in running if len(stamps[i]) < requests[i].new]
        if running:
            now += machine.decode(len(running), sum(requests[i].prompt + len(stamps[i]) for i in running))
            for index in running:
                stamps[index].append(now)
            running = [i for i in running if len(stamps[i]) < requests[i].new]
    served = [
        Served(times[0] - r.arrival, times[1] - r.arrival if len(times) > 1 else None, times[-1] - r.arrival)
        for r, times in zip(requests, stamps, strict=True)
    ]
    return stamps, served


def _size(request: Request) -> int:
    return request.prompt + request.new


@dataclasses.dataclass(frozen=True)
class Plan:
    """A way to lay a model over devices: copies of it, each cut into stages of blocks and its matrices into shards."""

    replicas: int
    stages: int
    shards: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a plan takes: seconds until the last request is done, and mean seconds to a first token."""

    plan: Plan
    seconds: float
    first: float


def plans(devices: int, depth: int, heads: int, weight_bytes: float, memory: float) -> list[Plan]:
    """All plans for so many devices whose stages have the same number of blocks, whose shards the same number of heads,
    and whose weights fit each device's memory.

    Raises:
        ValueError: where there is none.
    """
    found = [
        Plan(devices // (stages * shards), stages, shards)
        for stages in range(1, devices + 1)
        for shards in range(1, devices // stages + 1)
        if devices % (stages * shards) == 0 and depth % stages == 0 and heads % shards == 0
        if weight_bytes / (stages * shards) < memory
    ]
    if not found:
        raise ValueError(
            f"no plan puts {weight_bytes / 2**30:.1f} GiB, {depth} blocks and {heads} heads on {devices} devices of "
            f"{memory / 2**30:.1f} GiB"
        )
    return found


def planned(
    machine: Machine, plan: Plan, depth: int, dim_bytes: int, bandwidth: float, token_bytes: float,
    weight_bytes: float, memory: float,
) -> Machine:  # fmt: skip
    """One replica of a plan, of what one device takes for the whole model: shards divide each block and sum its output
    twice (a ring: 2 (s - 1) / s of the bytes each time), stages pass the stream on.

    Args:
        dim_bytes: of a token between two blocks.
        bandwidth: bytes a second between devices.
        token_bytes: of the state, a token, whole model.
        weight_bytes: of the whole model.
        memory: of a device.
    """
    parts = plan.stages * plan.shards
    summed = 2 * depth * 2 * (plan.shards - 1) / plan.shards * dim_bytes / bandwidth
    sent = summed + (plan.stages - 1) * dim_bytes / bandwidth  # a token
    room = int((memory - weight_bytes / parts) * parts / token_bytes)
    return Machine(
        lambda tokens: machine.prefill(tokens) / plan.shards + tokens * sent,
        lambda rows, held: machine.decode(rows, held) / plan.shards + rows * sent,
        room,
    )


def compare(requests: Sequence[Request], candidates: Sequence[tuple[Plan, Machine]]) -> list[Estimate]:
    """Plans, fastest first: requests go round the replicas, and a plan takes as long as the slowest of them."""
    found = []
    for plan, machine in candidates:
        ends, firsts = [], []
        for replica in range(plan.replicas):
            given = requests[replica :: plan.replicas]
            for request, served in zip(given, colocated(given, machine), strict=True):
                ends.append(request.arrival + served.last)
                firsts.append(served.first)
        found.append(Estimate(plan, max(ends, default=0.0), sum(firsts) / max(1, len(firsts))))
    return sorted(found, key=lambda estimate: estimate.seconds)

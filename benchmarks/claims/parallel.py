"""Several processes: what they send, and that they compute what one does; tuning beside serving."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import start_processes

import zoo
from zoo.benchmarks.claims.declare import Found, claim
from zoo.parallel import Traffic
from zoo.parallel.ring import ring_attention, token_ring_attention
from zoo.train.coserve import CoServing, in_pieces, shared_copy
from zoo.train.memory.count import saved_bytes

PROCESSES, ROWS, LENGTH, WIDTH = 4, 2, 64, 8
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("transformer_nano", {"num_heads": 4, "num_kv_heads": 4}),
    "mamba": ("mamba_nano", {}),
    "mamba2": ("mamba2_nano", {"num_groups": 4}),
}
RINGS = {"ring": ring_attention, "token ring": token_ring_attention}


@cache
def measured(work: Any) -> dict[str, Any]:
    """What the first of four processes of gloo finds."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(one_of, (work, folder), nprocs=PROCESSES, start_method="spawn")
        return json.loads(Path(folder, "found.json").read_text())


def one_of(rank: int, work: Any, folder: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    address = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES)
    found = work(rank)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@cache
def sums() -> dict[str, Any]:
    """All-reduces of each model's blocks in a forward pass, and the bytes that a block sends in both."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())  # what comes means nothing
    mesh, found = init_device_mesh("cpu", (PROCESSES,)), {}
    tokens = torch.randint(256, (ROWS, LENGTH))
    for name, (kind, options) in MODELS.items():
        for plan in ("tensor", "sequence"):
            model: Any = zoo.parallelize(zoo.create_model(kind, **options), mesh, plan)
            with Traffic() as traffic:
                loss = model(tokens, labels=tokens)
                forward = sum(traffic.calls.values())
                loss.backward()
            small = traffic.sent["all_reduce"] if plan == "sequence" else 0
            found[f"{name}, {plan}"] = {
                "calls": forward / model.config.depth,
                "sent": (traffic.bytes - small) / model.config.depth,
            }
    dist.destroy_process_group()
    return found


def rings(rank: int) -> dict[str, Any]:
    """Of four heads with keys of their own, and of four that share one: how far from dense attention, and the bytes."""
    group, found = dist.group.WORLD, {}
    for name, groups in (("all heads", 4), ("shared keys", 1)):
        drawn = torch.Generator().manual_seed(0)
        whole = [
            torch.randn(ROWS, heads, LENGTH, WIDTH, dtype=torch.float64, generator=drawn)
            for heads in (4, groups, groups, 4)
        ]
        q, k, v, dy = whole
        inputs = [t.requires_grad_() for t in (q, k, v)]
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        dense.backward(dy)
        for ring, attend in RINGS.items():
            a, b, c = parts = [own(t, rank).requires_grad_() for t in inputs]
            with Traffic() as traffic:
                y = attend(a, b, c, WIDTH**-0.5, group)  # type: ignore[arg-type]
                forward = traffic.bytes
                y.backward(own(dy, rank))
            pairs = [(y, own(dense, rank)), *((p.grad, own(t.grad, rank)) for p, t in zip(parts, inputs, strict=True))]
            far = torch.stack([(a - b).abs().max().detach() for a, b in pairs]).max()
            sent = torch.tensor([forward, traffic.bytes - forward], dtype=torch.float64)
            dist.all_reduce(sent)  # of all processes: half of the queries' pieces end their way early
            found[f"{ring}, {name}"] = {"apart": far.item(), "forward": sent[0].item(), "backward": sent[1].item()}
    return found


def own(x: Any, rank: int) -> Tensor:
    """A process's two pieces of a sequence."""
    pieces = x.detach().chunk(2 * PROCESSES, 2)
    return torch.cat([pieces[rank], pieces[2 * PROCESSES - 1 - rank]], 2)


@claim(
    "transformer", "1909.08053", says="A layer shared by its heads and channels takes two sums over the processes.",
    source="section 3 and figure 4: forwards one behind attention and one behind the MLP, and as many backwards",
    evidence="cost", value="all-reduces of a block in a forward pass", at_least=2, at_most=2,
    shares="sums",
)  # fmt: skip
def tensor_parallel_sums() -> Found:
    """Counted in the first of four processes of transformer_nano; the others are not there."""
    found = sums()
    return Found(found["attention, tensor"]["calls"], found)


@claim(
    "transformer", "2205.05198", says="Sharing out the tokens between layers sends no more than sharing out layers.",
    source="section 4.2.2: gathering and scattering take the bandwidth of the all-reduces that they replace",
    evidence="cost", value="bytes of a training step over those without it, small sums for norms and loss left out",
    at_least=1, at_most=1, shares="sums",
)  # fmt: skip
def sequence_parallel_traffic() -> Found:
    """Gathers and scatters of transformer_nano over four processes, of which one is there, beside the all-reduces of
    the plan "tensor"."""
    found = sums()
    return Found(found["attention, sequence"]["sent"] / found["attention, tensor"]["sent"], found)


@claim(
    "mamba2 mamba", "2405.21060", says="Shared by heads, a Mamba-2 layer takes half of the sums of a Mamba layer.",
    source="section 8.1: one all-reduce a layer, in the place of two", evidence="cost",
    value="all-reduces of a block of Mamba over those of Mamba-2, in a forward pass", at_least=2, at_most=2,
    shares="sums",
)  # fmt: skip
def mamba2_parallel_sums() -> Found:
    """Counted in the first of four processes, the others are not there; Mamba-2 has four groups of heads, as the paper
    asks for."""
    found = sums()
    return Found(found["mamba, tensor"]["calls"] / found["mamba2, tensor"]["calls"], found)


@claim(
    "transformer", "2412.20501", says="Queries that go round, and outputs that go straight back, are causal attention.",
    source="the method; its pieces r and 2 P - 1 - r of 2 P are those of the authors' code", evidence="identity",
    value="largest difference of an output or gradient", at_most=1e-10, limit=600, shares="rings",
)  # fmt: skip
def token_ring_exact() -> Found:
    """Four processes of gloo in float64 beside dense attention, with keys a head and with shared ones."""
    found = measured(rings)
    return Found(max(record["apart"] for record in found.values()), found)


@claim(
    "transformer", "2412.20501", says="Sent both ways, a link carries less one way than keys and values in a ring.",
    source="abstract: queries and block outputs are sent at a time, both ways", evidence="cost",
    value="numbers that go the busier way over those of a ring one way, forwards", at_most=1.0, limit=600,
    shares="rings",
)  # fmt: skip
def token_ring_traffic() -> Found:
    """Of all four processes, with keys a head: of what is sent the outputs with their sums, the larger part, go back.
    With keys that heads share the ring sends less."""
    found = measured(rings)
    back = (WIDTH + 1) / (2 * WIDTH + 1)  # a query's output and its sum, of query, output and sum
    ways = {name: record["forward"] * (back if "token" in name else 1) for name, record in found.items()}
    busier = ways["token ring, all heads"] / ways["ring, all heads"]
    shared = ways["token ring, shared keys"] / ways["ring, shared keys"]
    return Found(busier, {"with shared keys": shared} | found)


def tuned_beside(model: Any) -> Any:
    torch.manual_seed(1)
    made: Any = zoo.adapt(shared_copy(model), "lora", rank=4)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return made.train()


@claim(
    "transformer", "2402.18789", says="Tuning token by token beside requests gives what each gives alone.",
    source="abstract: token-level finetuning breaks the computation of a sequence down", evidence="identity",
    value="largest difference of an adapter's weight after three steps; infinite where a text differs", at_most=1e-9,
    limit=600,
)  # fmt: skip
def flexllm_coserving() -> Found:
    """transformer_nano with its weights in float64: three prompts continued and three steps of AdamW on rows of 96, in
    pieces of 16 tokens, beside both alone."""
    base: Any = zoo.create_model("transformer_nano", pretrained=True, dtype=torch.float64).eval()
    prompts = [list(text) for text in (b"The import", b"A list of", b"class ")]
    texts = [zoo.generate(base, [prompt], 24, temperature=0)[0].tolist() for prompt in prompts]
    rows = torch.randint(256, (3, 2, 96), generator=torch.Generator().manual_seed(0))
    alone, beside = tuned_beside(base), tuned_beside(base)
    learners = [[p for p in model.parameters() if p.requires_grad] for model in (alone, beside)]
    first, second = (torch.optim.AdamW(own, lr=1e-3) for own in learners)
    for tokens in rows:
        alone(tokens, labels=tokens).backward()
        first.step()
        first.zero_grad()
    both = CoServing(base, beside, second, budget=24, chunk_size=16)
    requests = [both.submit(prompt, 24, temperature=0) for prompt in prompts]
    for tokens in rows:
        both.tune(tokens)
    both.run()
    same = [request.prompt + request.said for request in requests] == texts
    apart = max((a - b).abs().max().item() for a, b in zip(*learners, strict=True))
    return Found(apart if same else float("inf"), {"texts": same, "losses": both.losses})


@claim(
    "transformer", "2402.18789", says="An adapter tuned by pieces needs a fraction of the activations.",
    source="abstract: activation memory reduced by up to 8x (first version), by 80 % (third)", evidence="cost",
    value="bytes kept in a step of all weights over those of the adapter's pieces", at_least=5.0,
)  # fmt: skip
def flexllm_activations() -> Found:
    """transformer_nano in float32, a row of 1024 tokens: what autograd keeps of a step of all weights, of an adapter's
    alone (what only frozen weights' gradients need is not kept), and at most of its pieces of 64 tokens, with the
    inputs of the blocks that these keep."""
    torch.manual_seed(0)
    every: Any = zoo.create_model("transformer_nano").train()
    tokens = torch.randint(256, (1, 1024))
    found = {"all weights": saved_bytes(every, lambda: every(tokens, labels=tokens)).most}
    tuned = tuned_beside(zoo.create_model("transformer_nano"))
    found["frozen weights"] = saved_bytes(tuned, lambda: tuned(tokens, labels=tokens)).most
    pieces = in_pieces(tuned, tokens, tokens, 64)
    most = saved_bytes(tuned, lambda: torch.zeros((), requires_grad=True) + sum(pieces)).most
    found["pieces"] = most + every.config.depth * tokens.numel() * every.config.dim * 4
    return Found(found["all weights"] / found["pieces"], found)

"""Models over several processes: outputs and gradients of one, what is sent, and what cannot be shared out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.testing._internal.distributed.fake_pg import FakeStore

import zoo
from cases import parallel as cases
from zoo.parallel import PLANS, Traffic
from zoo.parallel.pieces import Merged, attended, gradients, half, seen
from zoo.parallel.sights import Sight
from zoo.parallel.visits import visiting_keys, visiting_queries


def check(found: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    assert all(set(one) == set(names) for one in found)
    for rank, one in enumerate(found):
        for name, far in one.items():
            told = f"{name} in process {rank}: {far}"
            assert far["state"] and max(far["loss"], far["outputs"], far["gradients"]) < 1e-10, told
            assert far["steepest"] > 1e-3 and far["sent"] > 0, told
            assert far["held"] <= 1 and (cases.SHARED[name][2] in ("context", "token_ring") or far["held"] < 0.95), told


def test_two_processes_equal_one() -> None:
    check(cases.run(2, cases.QUICK), cases.QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_plan_of_several_processes_equals_one(processes: int) -> None:
    found = cases.run(processes, tuple(cases.SHARED))
    check(found, tuple(cases.SHARED))
    assert found[0]["whole layers in sequence"]["whole"] and not found[0]["attention in sequence"]["whole"]


@pytest.mark.slow
def test_processes_with_little_memory_share_a_model(tmp_path: Path) -> None:
    """TPI-LLM: each holds two of the parts of its half, reads every part once a pass and says what one process says."""
    start_processes(cases.offload, (str(tmp_path),), nprocs=2, start_method="spawn")
    for rank in range(2):
        for found in json.loads((tmp_path / f"{rank}.json").read_text()).values():
            assert found["texts"] == [True, True] and found["late"] == 0
            assert found["slots"] == 2 and found["loads"] == 5 * found["parts"]
            assert found["read"] < 0.55 * found["blocks"] and found["limit"] < found["whole"]


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[DeviceMesh]:
    """As many processes as asked for, of which only this one exists: what it receives means nothing."""
    dist.init_process_group("fake", rank=0, world_size=request.param, store=FakeStore())
    yield init_device_mesh("cpu", (request.param,))
    dist.destroy_process_group()


@pytest.mark.parametrize("mesh", [4, 8], indirect=True)
def test_what_is_sent_is_what_the_papers_say(mesh: DeviceMesh) -> None:
    """Megatron: two sums of all tokens a layer and direction; sequences: the same bytes, but for small sums; Mamba-2
    one sum, Mamba one more of the step sizes, B and C."""
    size, tokens = mesh.size(), torch.randint(64, (2, 32))
    dim, depth = cases.SMALL["dim"], cases.SMALL["depth"]
    once = 2 * tokens.numel() * dim * 8 * (size - 1) // size  # an all-reduce of all tokens

    def traffic(name: str, plan: str, **options: Any) -> tuple[Traffic, Any]:
        model: Any = zoo.create_model(name, dtype=torch.float64, **options)
        model = zoo.parallelize(model, mesh, plan)
        with Traffic() as counted:
            model(tokens, labels=tokens).backward()
        return counted, model

    heads = cases.HEADS | {"num_kv_heads": 8}
    tensor, model = traffic("transformer_nano", "tensor", **heads)
    assert tensor.calls == {"all_reduce": 4 * depth} and tensor.bytes == 4 * depth * once
    assert len(model.parallel.shared) == 2 * depth and not model.parallel.whole
    sequence, _ = traffic("transformer_nano", "sequence", **heads)
    assert sequence.sent["all_gather"] + sequence.sent["reduce_scatter"] == tensor.bytes
    mamba = {"d_state": 8, "num_groups": 8, "head_dim": 8, **cases.SMALL}
    assert traffic("mamba2_nano", "tensor", **mamba)[0].bytes == 2 * depth * once
    one, model = traffic("mamba_nano", "tensor", **cases.SMALL)
    small = 2 * tokens.numel() * model.blocks[0].mixer.x_proj.out_features * 8 * (size - 1) // size
    assert one.bytes == 2 * depth * (once + small)


def test_a_ring_of_pieces_is_attention_and_equal_work_for_all() -> None:
    """All processes in turn, without any; the formula of the sums, and the gradients from the merged ones."""
    size, piece, heads, groups, width = 4, 3, 6, 3, 8
    torch.manual_seed(0)
    q, k, v, dy = (
        torch.randn(2, h, 2 * size * piece, width, dtype=torch.float64) for h in (heads, groups, groups, heads)
    )
    for t in (q, k, v):
        t.requires_grad_()
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    whole.backward(dy)

    def own(x: torch.Tensor, rank: int) -> torch.Tensor:
        pieces = x.detach().chunk(2 * size, 2)
        return torch.cat([pieces[rank], pieces[2 * size - 1 - rank]], 2)

    work, wanted = [], [k.grad, v.grad]
    found = {rank: [torch.zeros_like(own(t, rank)) for t in (k, v)] for rank in range(size)}
    for rank in range(size):
        merged, count = Merged(own(q, rank)), 0
        for other in [rank, *(o for o in range(size) if o != rank)]:
            queries, keys = seen(rank, other)
            part = half(queries, own(q, rank)), half(keys, own(k, other)), half(keys, own(v, other))
            merged.add(queries, *attended(*part, width**-0.5, causal=rank == other))
            rows, columns = part[0].shape[2], part[1].shape[2]
            count += rows * columns if rank != other else rows * (rows + 1) // 2
        work.append(count)
        torch.testing.assert_close(merged.output, own(whole, rank), rtol=0, atol=1e-14)
        delta, dq = (own(dy, rank) * merged.output).sum(-1), torch.zeros_like(own(q, rank))
        for other in range(size):
            queries, keys = seen(rank, other)
            rows = (half(queries, t) for t in (own(q, rank), own(dy, rank), merged.lse, delta))
            columns = (half(keys, own(t, other)) for t in (k, v))
            parts = gradients(*rows, *columns, width**-0.5, causal=rank == other)
            half(queries, dq).add_(parts[0])
            for total, part in zip(found[other], parts[1:], strict=True):
                half(keys, total).add_(part)
        torch.testing.assert_close(dq, own(q.grad, rank), rtol=0, atol=1e-13)
    assert len(set(work)) == 1 and sum(work) == (2 * size * piece) * (2 * size * piece + 1) // 2
    for rank in range(size):
        for got, expected in zip(found[rank], wanted, strict=True):
            torch.testing.assert_close(got, own(expected, rank), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mesh", [4], indirect=True)
@pytest.mark.parametrize("plan", ["context", "token_ring"])
@pytest.mark.parametrize("window", [None, 9])
def test_what_no_query_sees_is_not_sent(mesh: DeviceMesh, plan: str, window: int | None) -> None:
    """Process 0 of 4 has pieces 0 and 7 of 8 tokens each. Within a window of 9 it sends the keys of piece 0 to process
    1, forwards and backwards, and back to it the gradient of what its piece 7 sees, of piece 6; or queries of piece 7,
    outputs of piece 1, and backwards twice as much. Of sequences as long as a piece nothing is sent."""
    model: Any = zoo.create_model("transformer_nano", dtype=torch.float64, **cases.HEADS, window=window)
    model = zoo.parallelize(model, mesh, plan)
    tokens, ids = torch.randint(64, (2, 64)), None if window else torch.arange(64).expand(2, -1) // 8
    with Traffic() as traffic:
        model(tokens, labels=tokens, seq_idx=ids).backward()
    piece = 2 * 8 * cases.SMALL["dim"] * 8  # bytes of queries of a piece, and of keys and values, of half as many heads
    sums = 2 * 8 * cases.HEADS["num_heads"] * 8  # bytes of a number a query and head
    messages = {"context": 1 + 2, "token_ring": 1 + 2 + 4 + 1}[plan]
    sent = {"context": 3 * piece, "token_ring": 5 * piece + 3 * sums}[plan]
    seen = cases.SMALL["depth"] * (window is not None)
    assert traffic.calls["send"] == messages * seen and traffic.sent["send"] == sent * seen


@pytest.mark.parametrize("mesh", [1], indirect=True)
@pytest.mark.parametrize("visiting", [visiting_keys, visiting_queries])
def test_long_pieces_of_a_window(mesh: DeviceMesh, visiting: Any) -> None:
    """Of which some queries see no key of the piece before; of two pieces in one process, which sends nothing."""
    length, window, total = 200, 70, 400
    torch.manual_seed(0)
    q, k, v, dy = (torch.randn(2, heads, total, 4, dtype=torch.float64) for heads in (4, 2, 2, 4))
    ids = torch.stack([torch.arange(total) // 150, torch.zeros(total, dtype=torch.int64)])
    back = torch.arange(total)[:, None] - torch.arange(total)
    mask = (back >= 0) & (back < window) & (ids[:, None, :] == ids[:, :, None])
    found = []
    for attend in (
        lambda *heads: F.scaled_dot_product_attention(*heads, attn_mask=mask[:, None], enable_gqa=True),
        lambda *heads: visiting(*heads, 0.5, mesh.get_group(), Sight(1, length, window, ids)),
    ):
        heads = [t.clone().requires_grad_() for t in (q, k, v)]
        output = attend(*heads)
        output.backward(dy)
        found.append([output, *(t.grad for t in heads)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("window", [None, 1, 2, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("packed", [False, True])
def test_which_pieces_see_which(window: int | None, packed: bool) -> None:
    """Against the whole mask: no pair is missed, none is visited in vain, and of each block every query's keys."""
    size, length = 3, 4
    total = 2 * size * length
    ids = torch.tensor([[0] * 5 + [1] * 19, [-1] * 3 + [2] * 8 + [3] * 5 + [4] * 8]) if packed else None
    back = torch.arange(total)[:, None] - torch.arange(total)
    whole = ((back >= 0) & (back < (window or total))).expand(2, -1, -1)
    if ids is not None:
        whole = whole & (ids[:, :, None] == ids[:, None])
    sight, messages = Sight(size, length, window, ids), 0
    for queries in range(size):
        for keys in range(size):
            pairs = sight.pairs(queries, keys)
            messages += queries != keys and bool(pairs)
            assert sight.queries(queries, keys) == tuple(sorted({a for a, _ in pairs}))
            for a, piece in enumerate(sight.pieces(queries)):
                for b, other in enumerate(sight.pieces(keys)):
                    wanted = whole[:, piece * length : (piece + 1) * length, other * length : (other + 1) * length]
                    assert ((a, b) in pairs) == bool(wanted.any())
                    block = sight.block(queries, keys, a, b)
                    for start in range(0, length, 3) if (a, b) in pairs else ():
                        stop, found = min(start + 3, length), torch.zeros_like(wanted)
                        near, mask = block.near(start, stop), block.mask(start, stop, wanted.device)
                        found[:, start:stop, near] = (
                            True if mask is None else mask if mask.dim() == 2 else mask[:, 0, 0]
                        )
                        assert torch.equal(found[:, start:stop], wanted[:, start:stop])
    if not packed:  # each piece's own past: none, one piece or two of other processes, or all
        assert messages == {1: 0, 2: 4, 4: 4, 5: 4}.get(window or total, 6)


@pytest.mark.parametrize("mesh", [4], indirect=True)
def test_wrong_input_says_so(mesh: DeviceMesh) -> None:
    for name, plan, options, message in (
        ("transformer_nano", "tensor", {}, "4 processes have equal parts of the heads .* num_kv_heads 2"),
        ("transformer_nano", "tensor", {"num_kv_heads": 4, "mlp_dim": 30}, "feed-forward layer: got hidden_dim 30"),
        ("mamba2_nano", "tensor", {}, "the groups of Mamba-2's heads: got num_groups 1"),
        ("moe_nano", "expert", {"num_experts": 6}, "the experts of MoE: got num_experts 6"),
        ("moe_nano", "tensor", {"num_experts": 6, "num_kv_heads": 4}, "the experts of MoE: got num_experts 6"),
        ("deepseek_nano", "tensor", {"mlp_dim": 18}, "feed-forward layer: got hidden_dim 18"),
        ("transformer_nano", "expert", {}, "no experts to share out: take plan='tensor'"),
        ("mamba2_nano", "context", {}, r"is for causal attention, .*blocks\.0\.mixer is a Mamba2: take plan='tensor'"),
        ("transformer_nano", "token_ring", {"attention_sinks": True}, "CausalAttention with a softcap or sinks"),
        ("transformer_nano", "context", {"attention_softcap": 5.0, "window": 4},
         "is a SlidingWindowAttention with a softcap or sinks: take plan='tensor'"),
        ("moe_nano", "context", {}, "layers of single tokens, .* take plan='tensor'"),
        ("vit_nano", "sequence", {}, "language model of blocks one after the other, got .*take plan='tensor'"),
        ("rwkv7_nano", "tensor", {}, "RWKV7LanguageModel has no layers that can be shared out"),
        ("transformer_nano", "tensors", {}, "no plan 'tensors', did you mean 'tensor'"),
        ("transformer_nano", "tensor", {"node_size": 2}, "node_size is of plan='expert'"),
    ):  # fmt: skip
        extra = {"node_size": options.pop("node_size")} if "node_size" in options else {}
        model = zoo.create_model(name, **options)
        with pytest.raises(ValueError, match=message):
            zoo.parallelize(model, mesh, plan, **extra)
        assert not any(isinstance(parameter, DTensor) for parameter in model.parameters())  # as it was
    with pytest.raises(ValueError, match=r"mesh must be of the processes, as .*init_device_mesh makes it, got None"):
        zoo.parallelize(zoo.create_model("transformer_nano", depth=1), None)  # pyright: ignore[reportArgumentType]
    model = zoo.parallelize(zoo.create_model("transformer_nano", depth=1), mesh, "context")
    with pytest.raises(ValueError, match="a length that 8 divides, got 12"):
        model(torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="it takes no state; generate with plan='tensor'"):
        model(torch.zeros(1, 16, dtype=torch.int64), model.init_state(1))
    with pytest.raises(ValueError, match="seq_idx must have the shape of tokens"):
        model(torch.zeros(1, 16, dtype=torch.int64), seq_idx=torch.zeros(1, 15, dtype=torch.int64))
    other = zoo.parallelize(zoo.create_model("transformer_nano", depth=1, num_kv_heads=4), mesh, "sequence")
    with pytest.raises(ValueError, match=r"plan='sequence' takes no seq_idx.* by plan='context' and 'token_ring'"):
        other(torch.zeros(1, 16, dtype=torch.int64), seq_idx=torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="shared out already"):
        zoo.parallelize(model, mesh)
    for refused in (zoo.save_model, lambda model, _: zoo.adapt(model, "lora")):
        with pytest.raises(ValueError, match=r"processes share this model|comes before zoo\.parallelize"):
            refused(model, "folder")
    for change in (zoo.quantize, partial(zoo.adapt, method="lora")):
        model = zoo.create_model("transformer_nano", depth=1, num_kv_heads=4)
        change(model)
        with pytest.raises(
            ValueError, match=r"q_proj of a CausalAttention is no plain layer but a .* before it is quantised"
        ):
            zoo.parallelize(model, mesh)
    assert set(PLANS) == {plan for _, _, plan in cases.SHARED.values()}

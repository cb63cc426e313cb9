"""The Routing Transformer as a model: which blocks route, what training changes, what the options do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from zoo.layers import ParallelMixers
from zoo.layers.attention import RoutingAttention, SlidingWindowAttention

SMALL = {"vocab_size": 50, "dim": 32, "mlp_dim": 40, "num_clusters": 3, "cluster_size": 6, "window": 4, "decay": 0.5}


def small(**changes: Any) -> Any:
    """A nano model whose clusters and window are smaller than the test's tokens."""
    return zoo.create_model("routing_nano", dtype=torch.float64, **SMALL | changes)


def tokens(length: int = 20) -> Tensor:
    return torch.randint(0, 50, (2, length))


def heads(model: Any) -> list[tuple[int, int]]:
    """Local and routing heads of each block."""
    found = []
    for mixer in model.mixers:
        assert isinstance(mixer, ParallelMixers)
        parts = {type(part): part.num_heads for part in mixer.mixers}  # pyright: ignore[reportAttributeAccessIssue]
        found.append((parts.get(SlidingWindowAttention, 0), parts.get(RoutingAttention, 0)))
    return found


def test_heads_are_placed_as_in_the_paper():
    assert heads(zoo.create_model("routing_nano")) == [(2, 2)] * 3
    assert heads(zoo.create_model("routing_wikitext103", device="meta")) == [(8, 8)] * 14
    assert heads(zoo.create_model("routing_pg19", device="meta")) == [(8, 0)] * 21 + [(6, 2)]
    assert heads(small(num_routing_heads=4, first_routing=1)) == [(4, 0), (0, 4), (0, 4)]
    assert not zoo.activity(small(num_routing_heads=0))


def test_only_routing_heads_reach_beyond_the_window():
    """Three local blocks of window 4 see 9 steps back; in one cluster a routing head sees everything."""
    x = tokens()
    changed = x.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 50
    local, routed = small(num_routing_heads=0).eval(), small(num_clusters=1).eval()
    assert torch.equal(local(x)[:, 10:], local(changed)[:, 10:])
    assert not torch.equal(local(x)[:, 9], local(changed)[:, 9])
    assert not torch.equal(routed(x)[:, -1], routed(changed)[:, -1])


def test_checkpointed_training_moves_weights_and_centroids_the_same():
    rows, ends = [tokens() for _ in range(4)], []
    for enable, passes in ((False, 1), (True, 1), (True, 2)):
        torch.manual_seed(0)
        model = small()
        model.set_grad_checkpointing(enable)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = model.blocks[0].mixer.routing.kmeans.centroids.clone()
        for x in rows:
            optimizer.zero_grad()
            for _ in range(passes):  # accumulated
                loss = model(x, labels=x) + sum(zoo.auxiliary_losses(model).values())
                (loss / passes).backward()
            optimizer.step()
            zoo.after_step(model)
        assert (model.blocks[0].mixer.routing.kmeans.centroids - before).abs().max() > 0.01
        ends.append(model.state_dict())
    for other in ends[1:]:
        for name, value in ends[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-9, rtol=1e-9)


def test_centroids_are_saved_and_stay_wide_in_a_low_precision_model(tmp_path):
    model: Any = zoo.create_model("routing_nano", dtype=torch.bfloat16)
    for mixer in model.mixers:
        assert mixer.routing.kmeans.centroids.dtype == torch.float32
    zoo.save_model(model, tmp_path)
    again: Any = zoo.create_model(f"local-dir:{tmp_path}")
    for mixer, other in zip(model.mixers, again.mixers, strict=True):
        assert torch.equal(mixer.routing.kmeans.centroids, other.routing.kmeans.centroids)


def test_evaluation_leaves_the_centroids_and_repeats_itself():
    model, x = small(), tokens()
    model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert torch.equal(model.eval()(x), model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not zoo.auxiliary_losses(model) and not zoo.activity(model)


def test_side_losses_and_activity_of_training():
    model, x = small(commitment_weight=0.25), tokens()
    model(x)
    total, expected = zoo.auxiliary_losses(model)["commitment"], 0.0
    for mixer in model.mixers:
        routing = mixer.routing
        assert routing.kmeans.counts.sum(-1).tolist() == [40, 40]
        assert 1 / 3 <= routing.activity["covered"] <= 0.9  # 3 clusters of 6 over 20 positions
        assert 0 < routing.activity["agreement"] <= 1
        expected += routing.auxiliary_losses["commitment"]
    assert total == expected and 0.25 * 3 * 0.1 < total < 0.25 * 3 * 4  # unit variance, centroids of unit variance
    weights = [mixer.routing.qk_proj.weight for mixer in model.mixers]
    assert all(gradient.any() for gradient in torch.autograd.grad(total, weights))


def test_compiles_as_one_graph_also_in_training():
    model, x = small(depth=1), tokens()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, labels=x), model(x, labels=x))


def test_a_narrow_embedding_is_brought_to_the_width_of_the_model():
    model = small(embedding_dim=8)
    assert model.embedding.weight is model.head.weight and model.head.weight.shape == (50, 8)
    x = tokens()
    wide = model.embedding(x) @ model.embedding_in.weight.T
    assert torch.equal(model.embed(x), wide) and wide.shape == (2, 20, 32)
    assert model(x, labels=x).isfinite() and model.eval()(x).shape == (2, 20, 50)


def test_drop_rate_acts_in_training_only():
    model, x = small(drop_rate=0.5, cluster_size=20), tokens()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_routing_heads": 5}, r"num_routing_heads must be in \[0, num_heads\]: got 5 of 4"),
        ({"first_routing": 3}, r"first_routing must be in \[0, depth\), got 3, depth 3.*num_routing_heads=0"),
        ({"num_clusters": 0}, "num_clusters must be a positive integer, got 0"),
        ({"num_heads": 5}, "num_heads must divide dim, or head_dim be given: got 5 heads, dim 128"),
        ({"head_dim": 7}, "even heads.*head_dim 7"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\)"),
    ],
)
def test_sizes_that_do_not_fit_say_the_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        zoo.create_model("routing_nano", **changes)

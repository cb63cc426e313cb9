"""R-Sparse: its product by definition, few tokens as many, what it is at its ends, shares, bytes, and bad input."""

from __future__ import annotations

import copy
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.cli import main
from zoo.layers.sparse import rank_aware
from zoo.layers.sparse.rank_aware import RankAware, gathered, low_rank, rank_of
from zoo.quantize import Calibration
from zoo.sparsify.r_sparse import RSparse, Search, input_scores, nbytes_read


def text(name: str, rows: int = 4) -> Tensor:
    return torch.tensor(list(topics[name].encode()[: 128 * rows])).view(rows, 128)


SEEN = Calibration(text("compound").split(2))


@pytest.fixture(scope="module")
def trained() -> Any:
    return zoo.create_model("transformer_nano", pretrained=True).eval()


@torch.no_grad()
def loss(model: Any) -> float:
    unseen = text("specialnames", 8)
    return model(unseen, labels=unseen).item()


def filled(rank: int, threshold: float) -> tuple[RankAware, Tensor]:
    matrix = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    layer = RankAware((12, 20), rank, nn.Parameter(matrix))
    layer.fill(matrix, *low_rank(matrix, rank), threshold)
    return layer, matrix


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 20), (3, 20), (2, 1, 20), (9, 20)])
def test_the_product_is_that_of_the_definition(shape, threads, monkeypatch):
    """Of few tokens, which read columns, and of many; some keep none, some all."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer, w = filled(4, 3.0)
    x, bias = torch.randn(shape), torch.randn(12)
    x.view(-1, 20)[0] = 0.01
    x.view(-1, 20)[-1] *= 100 if len(x.view(-1, 20)) > 1 else 1
    kept = x.abs() * w.norm(dim=0) > 3.0
    left, right = low_rank(w, 4)
    expected = (x * kept).double() @ w.double().mT + (x * ~kept).double() @ (left @ right).double().mT + bias
    with torch.no_grad():
        found = layer.matmul(x, bias)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert layer.activity["kept"] == kept.float().mean()
    assert layer.nbytes_read() == pytest.approx((kept.float().mean().item() * 240 + 4 * 32 + 20) * 4)


def test_ends_are_the_dense_matrix_and_the_best_low_rank():
    x = torch.randn(3, 20)
    layer, w = filled(0, -1.0)
    with torch.no_grad():
        torch.testing.assert_close(layer.matmul(x), x @ w.mT)
        for threshold in (0.5, 1e9):
            layer, w = filled(12, threshold)
            torch.testing.assert_close(layer.matmul(x), x @ w.mT, rtol=1e-4, atol=1e-4)
        layer, w = filled(3, 1e9)
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        torch.testing.assert_close(layer.matmul(x), x @ ((u[:, :3] * s[:3]) @ v[:3]).mT, rtol=1e-4, atol=1e-4)
    assert rank_of((12, 20), 0.5, 1.0) == 0 and rank_of((12, 20), 0.5, 0.0) == int(120 / 32)


@pytest.mark.parametrize("tokens", [1, 9])
def test_what_is_no_number_is_told(tokens):
    """Of no rank, too, where nothing else reads what is not kept."""
    layer, _ = filled(0, 3.0)
    x = torch.randn(tokens, 20)
    x[-1, 4] = torch.nan
    with torch.no_grad():
        found = layer.matmul(x)
    assert found[-1].isnan().all() and found[:-1].isfinite().all()


def test_gradients_are_those_of_what_is_computed():
    layer, w = filled(4, 3.0)
    x = torch.randn(2, 20, requires_grad=True)
    y = layer.matmul(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    kept = (x.detach().abs() * w.norm(dim=0) > 3.0).float()
    left, right = low_rank(w, 4)
    torch.testing.assert_close(x.grad, kept * (dy @ w) + (1 - kept) * (dy @ left @ right), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.columns.grad, (x.detach() * kept).mT @ dy)


def test_few_tokens_copy_no_columns():
    """What is read is the columns that are kept: others may hold anything."""
    columns = torch.randn(30, 8)
    x, kept = torch.randn(2, 30), torch.zeros(2, 30, dtype=torch.bool)
    kept[0, [3, 7]], kept[1, 29] = True, True
    expected = torch.stack([x[0, 3] * columns[3] + x[0, 7] * columns[7], x[1, 29] * columns[29]])
    columns[~kept.any(0)] = torch.nan
    torch.testing.assert_close(gathered(x, kept, columns), expected)


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "moe_nano", "vit_nano"])
def test_nothing_sparse_is_the_dense_model(name, tmp_path):
    """At sparsity 0 and share 1 all is read; saved and loaded it computes the same, by steps too."""
    model: Any = zoo.create_model(name, pretrained=True).eval()
    image = name == "vit_nano"
    x = torch.randn(2, model.config.in_chans, *model.config.image_shape) if image else text("compound", 2)[:, :20]
    with torch.no_grad():
        expected = model(x)
        zoo.sparsify(model, "r_sparse", sparsity=0.0, share=1.0, calibration=Calibration([x]))
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        again: Any = zoo.create_model(f"local-dir:{zoo.save_model(model, tmp_path)}").eval()
        assert torch.equal(again(x), model(x))
        if not image:
            state = model.init_state(2)
            steps = torch.cat([model(part, state) for part in x.split([16, 1, 1, 1, 1], 1)], 1)
            torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-4)


def test_half_is_read_and_less_is_lost_than_by_the_largest_weights(trained):
    model, pruned = copy.deepcopy(trained), copy.deepcopy(trained)
    zoo.sparsify(model, "r_sparse", sparsity=0.5, share=0.9, calibration=SEEN, skip="blocks.0.mixer.*")
    zoo.sparsify(pruned, "magnitude", sparsity=0.5, pattern="row", skip="blocks.0.mixer.*")
    assert loss(trained) < loss(model) < loss(pruned)
    layers = [module for module in model.modules() if isinstance(module, RankAware)]
    dense = sum(module.shape.numel() for module in layers) * 4
    read = sum(module.nbytes_read() for module in layers)
    assert 0.4 * dense < read < 0.56 * dense and len(layers) == 3 * 7 - 4
    whole = sum(p.nbytes for name, p in trained.named_parameters() if "embedding" not in name or trained.head is None)
    assert nbytes_read(model) < whole


def test_thresholds_keep_the_share_that_was_asked_for(trained):
    name = "blocks.1.mlp.w1.weight"
    scores = input_scores(trained, [name], SEEN)
    found = Search(trained, [name], 0.6, scores)
    for share in (1.0, 0.5, 0.0):
        matrix = found.made(name, share)
        kept = (scores[name] > matrix.threshold).float().mean().item()
        assert abs(kept - 0.4 * share) < 1e-3 and matrix.rank == rank_of(matrix.shape, 0.6, share)


def test_a_search_is_never_worse_than_its_start_and_follows_its_seed(trained):
    names = [f"blocks.{i}.mlp.w{j}.weight" for i in range(2) for j in (1, 2)]
    found = Search(trained, names, 0.7, input_scores(trained, names, SEEN))
    shares = dict.fromkeys(names, 0.6)
    from zoo.quantize.calibration import model_outputs

    with torch.no_grad():
        expected = model_outputs(trained, SEEN)
    start = found.change(shares, SEEN, expected)
    best = found.best(shares, SEEN, 5, seed=1)
    assert found.change(best, SEEN, expected) < start and best == found.best(shares, SEEN, 5, seed=1)
    assert best != found.best(shares, SEEN, 5, seed=2) and type(trained.blocks[0].mlp.w1) is nn.Linear


def test_dtypes_and_the_command(trained, tmp_path, capsys):
    model = zoo.sparsify(copy.deepcopy(trained), "r_sparse", calibration=SEEN)
    folder = zoo.save_model(model, tmp_path / "sparse")
    half: Any = zoo.create_model(f"local-dir:{folder}", dtype=torch.bfloat16).eval()
    x = text("compound", 1)[:, :6]
    with torch.no_grad():
        assert half(x).dtype == torch.bfloat16 and half(x).isfinite().all()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == trained(x).dtype
    (tmp_path / "text.txt").write_text(topics["compound"][:20000])
    call = ["sparsify", "transformer_nano", str(tmp_path / "out"), "--method", "r_sparse", "--option", "share=0.9"]
    assert main([*call, "--calibration", str(tmp_path / "text.txt")]) == 0
    made: Any = zoo.create_model(f"local-dir:{tmp_path / 'out'}")
    assert made.blocks[0].mlp.w1.weight.rank == rank_of(made.blocks[0].mlp.w1.weight.shape, 0.5, 0.9) > 0
    assert main(call) == 2
    assert "r_sparse needs calibration=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, r"share must lie in \[0, 1\]"),
        ({"generations": -1}, "generations be at least 0"),
        ({"pattern": "2:4"}, "r_sparse keeps all numbers of a matrix: it takes no pattern, got '2:4'"),
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\)"),
    ],
)
def test_what_is_refused(options, message, trained):
    with pytest.raises(ValueError, match=message):
        zoo.sparsify(trained, "r_sparse", calibration=SEEN, **options)
    with pytest.raises(ValueError, match="pattern must be 'unstructured', 'row' or 'n:m'"):
        zoo.sparsify(trained, pattern="activations")
    assert not any(isinstance(module, RankAware) for module in trained.modules())
    assert RSparse().pattern == "activations" and rank_aware.FEW >= 1

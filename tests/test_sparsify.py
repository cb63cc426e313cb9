"""Sparse models: which numbers stay, what they compute and learn, that they save and load, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.cli import main
from zoo.layers.sparse import Pattern, SparseLinear, SparseMatrix
from zoo.layers.sparse.replace import prunable, weights_of
from zoo.quantize import Calibration
from zoo.sparsify.wanda import input_norms


def inputs(model: Any, seed: int = 0) -> Tensor:
    generator, config = torch.Generator().manual_seed(seed), model.config
    if hasattr(config, "vocab_size"):
        return torch.randint(0, config.vocab_size, (2, 24), generator=generator)
    return torch.randn(2, config.in_chans, *config.image_shape, generator=generator)


def sparse(model: nn.Module) -> dict[str, SparseMatrix]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseMatrix)}


def dense_twin(model: nn.Module, name: str) -> Any:
    """The plain model of the numbers that a sparse one holds."""
    twin = zoo.create_model(name).eval()
    twin.load_state_dict(model.state_dict(), strict=False)
    for key, matrix in sparse(model).items():
        weights_of(twin, key).data.copy_(matrix.dense())
    return twin


@pytest.mark.parametrize(
    ("pattern", "sparsity", "bits"),
    [
        ("unstructured", 0.8, 1 + 0.2 * 32 + 32 * 25 / (24 * 64)),
        ("row", 0.75, 1 + 0.25 * 32),
        ("2:4", 0.5, 1 + 0.5 * 32),
        ("1:8", 0.0, 1 + 32 / 8),
    ],
)
def test_stored_bytes_are_those_of_the_formula(pattern, sparsity, bits):
    given = Pattern(pattern, sparsity)
    matrix = SparseMatrix((24, 64), given, torch.zeros(1))
    kept = round(24 * 64 * 0.2) if pattern == "unstructured" else None
    by_hand = bits * 24 * 64 / 8 if kept is None else kept * 4 + 24 * 8 + 4 * 25
    assert matrix.nbytes == given.nbytes(24, 64, 4) == by_hand


def test_patterns_keep_the_largest_and_of_equal_ones_the_first():
    score = torch.rand(6, 16)
    whole, rows, few = (Pattern(name, 0.5).choose(score) for name in ("unstructured", "row", "2:4"))
    assert whole.sum() == 48 and score[whole].min() > score[~whole].max()
    assert (rows.sum(1) == 8).all() and all(s[k].min() > s[~k].max() for s, k in zip(score, rows, strict=True))
    assert (few.unflatten(1, (4, 4)).sum(-1) == 2).all()
    assert torch.equal(few.flatten(), Pattern("row", 0.5).choose(score.view(-1, 4)).flatten())
    assert Pattern("row", 0.5).choose(torch.ones(1, 6)).tolist() == [[True] * 3 + [False] * 3]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano", "moe_nano", "vit_nano", "gpt_oss_nano"])
def test_it_computes_what_the_pruned_matrices_do_and_reloads_bit_equal(name, pattern, tmp_path):
    model = zoo.create_model(name).eval()
    assert zoo.sparsify(model, pattern=pattern) is model and not model.training
    x = inputs(model)
    with torch.no_grad():
        found = model(x)
        torch.testing.assert_close(found, dense_twin(model, name)(x), rtol=1e-4, atol=1e-5)
    assert sparse(model) and not isinstance(getattr(model, "head", None), SparseLinear)
    zoo.save_model(model, tmp_path)
    again = zoo.create_model(f"local-dir:{tmp_path}").eval()
    held = again.state_dict()
    assert all(torch.equal(held[key], tensor) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(again(x), found)


@pytest.mark.parametrize("name", ["transformer_nano", "mamba2_nano"])
def test_all_kept_is_the_dense_model_bit_for_bit(name):
    model: Any = zoo.create_model(name).eval()
    x = inputs(model)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(zoo.sparsify(model, sparsity=0.0)(x), expected)
        state = model.init_state(2)
        steps = torch.cat([model(part, state) for part in x.split([20, 1, 1, 1, 1], 1)], 1)
    torch.testing.assert_close(steps, expected, rtol=1e-4, atol=1e-4)


def test_what_is_left_learns_and_nothing_comes_back():
    model: Any = zoo.sparsify(zoo.create_model("moe_nano"), sparsity=0.7)
    x, masks = inputs(model), {key: matrix.mask.clone() for key, matrix in sparse(model).items()}
    exact = dense_twin(model, "moe_nano")
    for m in (model, exact):
        m(x, labels=x).backward()
    for key, matrix in sparse(model).items():
        gradient = getattr(exact.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2]).grad
        gradient = gradient.mT if matrix.values.dim() == 2 else gradient
        expected = gradient.contiguous()[matrix.dense().detach() != 0]
        torch.testing.assert_close(matrix.values.grad.flatten(), expected, rtol=1e-3, atol=1e-6)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(torch.equal(matrix.mask, masks[key]) for key, matrix in sparse(model).items())


def test_wanda_scores_by_the_norms_of_inputs():
    """One linear layer by hand, experts by their own tokens, and the model is as it was."""
    model: Any = zoo.create_model("moe_nano").eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    x, seen = inputs(model), []
    layer = model.blocks[0].mixer.q_proj
    handle = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, -2)))
    with torch.no_grad():
        expected = model(x)
    handle.remove()
    names = ["blocks.0.mixer.q_proj.weight", "blocks.0.mlp.w1", "blocks.0.mlp.w2"]
    norms = input_norms(model, names, Calibration([x]))
    torch.testing.assert_close(norms[names[0]], seen[0].norm(dim=0))
    assert norms[names[1]].shape == (model.config.num_experts, layer.in_features)
    assert torch.equal(
        norms[names[1]][0].new_tensor(len(norms[names[2]])), norms[names[1]].new_tensor(len(norms[names[1]]))
    )
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    weight = layer.weight.detach().clone()
    zoo.sparsify(model, "wanda", sparsity=0.5, calibration=Calibration([x]))
    kept = Pattern("row", 0.5).choose(weight.abs() * norms[names[0]])
    assert torch.equal(model.blocks[0].mixer.q_proj.weight.dense(), weight * kept)


def test_wanda_loses_less_than_magnitude_where_inputs_differ():
    """Of inputs that it was not calibrated with; channels of one are up to a hundred times as large as of another."""
    scale = 10 ** torch.linspace(-1, 1, 64)
    layer, x = nn.Linear(64, 32), scale * torch.randn(256, 64)
    errors = {}
    for method in ("magnitude", "wanda"):
        model = nn.Sequential(nn.Linear(64, 32))
        model[0].load_state_dict(layer.state_dict())
        given = {"calibration": Calibration([scale * torch.randn(64, 64)])} if method == "wanda" else {}
        zoo.sparsify(model, method, pattern="row", **given)
        errors[method] = ((model(x) - layer(x)).norm() / layer(x).norm()).item()
    assert errors["wanda"] < 0.3 * errors["magnitude"]


def test_the_dtype_is_the_models(tmp_path):
    model = zoo.sparsify(zoo.create_model("mamba2_nano"))
    zoo.save_model(model, tmp_path)
    half: Any = zoo.create_model(f"local-dir:{tmp_path}", dtype=torch.bfloat16).eval()
    assert all(m.values.dtype == torch.bfloat16 and m.mask.dtype == torch.uint8 for m in sparse(half).values())
    x = inputs(half)
    with torch.no_grad():
        assert half(x).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).dtype == zoo.create_model("mamba2_nano")(x).dtype


def test_the_command(tmp_path, capsys):
    assert main(["sparsify", "transformer_nano", str(tmp_path / "out"), "--sparsity", "0.8"]) == 0
    assert "bytes, by magnitude" in capsys.readouterr().out
    assert sparse(zoo.create_model(f"local-dir:{tmp_path / 'out'}"))
    assert main(["sparsify", str(tmp_path / "out"), str(tmp_path / "again")]) == 2
    assert "nothing to prune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"pattern": "5:4"}, ValueError, "keeps n of m columns, 1 <= n <= m, got '5:4'"),
        ({"pattern": "2-4"}, ValueError, "pattern must be 'unstructured', 'row' or 'n:m'"),
        ({"pattern": "2:7"}, ValueError, r"q_proj\.weight: pattern '2:7' takes rows of a multiple of 7 columns"),
        ({"method": "wander"}, ValueError, "unknown method 'wander', did you mean 'wanda'"),
        ({"method": "wanda"}, ValueError, "wanda needs calibration="),
        ({"calibration": Calibration([torch.full((1, 4), 256)])}, ValueError, "calibration holds token 256"),
        ({"alpha": 1}, TypeError, "magnitude has no option 'alpha'; its options: none"),
        ({"skip": "blocks.9.*"}, ValueError, "skip names no weight by 'blocks.9"),
        ({"skip": "*"}, ValueError, "skip leaves no weight"),
        ({"skip": None}, TypeError, "skip must be a pattern of names or several, got None"),
        ({"skip": [0]}, TypeError, r"skip must be a pattern of names or several, got \[0\]"),
    ],
)
def test_what_is_refused(options, error, message):
    model = zoo.create_model("transformer_nano")
    with pytest.raises(error, match=message):
        zoo.sparsify(model, **options)
    assert not sparse(model) and len(prunable(model)) > 10


def test_a_quantised_model_is_refused():
    model = zoo.quantize(zoo.create_model("transformer_nano"), skip="blocks.0.*")
    with pytest.raises(ValueError, match=r"sparse comes before zoo\.factorize and zoo\.quantize"):
        zoo.sparsify(model)

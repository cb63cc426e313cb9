"""Low ranks in place of matrices: exact at full rank, the errors of the solvers, saving, and what is left alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import zoo
from zoo.cli import main
from zoo.layers.lowrank import SOLVERS, LowRank
from zoo.layers.precision import computes_in

MANY = 10**6  # above every full rank
FAMILIES = ["transformer", "mamba2", "moe", "gated_deltanet", "longconv_text", "vit", "mcunet", "axial", "vim"]


def inputs(model: Any) -> Tensor:
    config = model.config
    if hasattr(config, "vocab_size"):
        return torch.randint(0, config.vocab_size, (2, 20))
    if hasattr(config, "num_levels"):
        return torch.randint(0, config.num_levels, (2, config.in_chans, *config.image_shape))
    return torch.randn(2, config.in_chans, *config.image_shape, dtype=computes_in(model).dtype)


def product(layer: LowRank) -> Tensor:
    left, right = (part.weight.flatten(1) for part in (layer.from_rank, layer.to_rank))
    return left @ right


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_changes_nothing(family):
    """Nor does the head's tie to the embedding."""
    model: Any = zoo.create_model(f"{family}_nano", dtype=torch.float64).eval()
    x, plain = inputs(model), {name for name, m in model.named_modules() if type(m) is nn.Linear} - {"head"}
    expected = model(x)
    assert zoo.factorize(model, MANY, only_smaller=False) is model
    replaced = {name for name, module in model.named_modules() if isinstance(module, LowRank)}
    assert plain <= replaced
    torch.testing.assert_close(model(x), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(12, 7),
        nn.Conv1d(6, 5, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(4, 9, (3, 2), padding=1, padding_mode="circular", bias=False),
        nn.Conv3d(2, 5, 2, stride=(1, 2, 1)),
    ],
)
@pytest.mark.parametrize("solver", ["svd", "nmf"])
def test_layers_at_full_rank(layer, solver):
    layer = layer.double()
    x = torch.randn(3, layer.weight.shape[1], *[8] * (layer.weight.dim() - 2), dtype=torch.float64)
    factors = LowRank(layer, min(layer.weight.flatten(1).shape))
    factors.solve(layer, solver)
    torch.testing.assert_close(factors(x), layer(x), atol=1e-9, rtol=1e-9)


def test_errors_are_those_of_the_singular_values():
    torch.manual_seed(0)
    layer = nn.Linear(20, 14, dtype=torch.float64)
    values, errors = torch.linalg.svdvals(layer.weight), {}
    for rank in (1, 5, 13):
        for solver in SOLVERS:
            factors = LowRank(layer, rank)
            factors.solve(layer, solver)
            errors[solver] = (product(factors) - layer.weight).norm()
            assert torch.equal(factors.from_rank.bias, layer.bias)
            if solver == "nmf":
                assert (factors.from_rank.weight >= 0).all()  # the shorter side
        torch.testing.assert_close(errors["svd"], values[rank:].norm())
        assert errors["svd"] < errors["nmf"] < values.norm() < errors["random"]


def test_sizes_of_bert_base():
    """Linear layers of the encoder at rank r; embeddings and pooler stay."""
    bert = partial(transformers.BertModel, transformers.BertConfig())
    for rank, expected in ((None, 109.48), (64, 35.16), (96, 40.47), (128, 45.78), (192, 56.40), (256, 67.01)):
        with torch.device("meta"):
            model = bert()
        if rank is not None:
            zoo.factorize(model, rank, skip=["pooler.*"])
        assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - expected) < 0.006


@pytest.mark.parametrize("name", ["transformer_nano", "mcunet_nano"])
def test_saved_reloaded_and_trained_like_any_model(name, tmp_path):
    model: Any = zoo.factorize(zoo.create_model(name), 0.5).eval()
    full = zoo.model_info(name).num_parameters
    zoo.save_model(model, tmp_path)
    x = inputs(model)
    assert sum(p.numel() for p in model.parameters()) < 0.8 * full
    file = tmp_path / "model.safetensors"
    for again in (zoo.create_model(f"local-dir:{tmp_path}"), zoo.create_model(name, checkpoint_path=file)):
        assert torch.equal(again.eval()(x), model(x))
    zoo.convert(tmp_path, tmp_path / "converted")
    assert torch.equal(zoo.create_model(f"local-dir:{tmp_path / 'converted'}").eval()(x), model(x))
    assert zoo.model_info(f"local-dir:{tmp_path}").num_parameters == sum(p.numel() for p in model.parameters())
    loss = model.train()(x, labels=x) if name == "transformer_nano" else model.train()(x).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "rank" in n)


def test_transformers_loads_the_factors_too(tmp_path):
    from zoo.integrations.transformers import wrap

    model: Any = zoo.factorize(zoo.create_model("transformer_nano"), 8).eval()
    tokens = inputs(model)
    zoo.save_model(model, tmp_path / "zoo")
    wrap(model).save_pretrained(tmp_path / "theirs")
    for folder in ("zoo", "theirs"):
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()
        torch.testing.assert_close(loaded(tokens).logits, model(tokens))
        assert torch.equal(zoo.create_model(f"local-dir:{tmp_path / folder}").eval()(tokens), model(tokens))


def test_what_is_skipped_tied_grouped_or_not_smaller_stays():
    model: Any = zoo.factorize(zoo.create_model("transformer_nano"), 8, skip=["blocks.0.*"])
    assert isinstance(model.blocks[1].mlp.w1, LowRank) and type(model.blocks[0].mlp.w1) is nn.Linear
    assert type(model.head) is nn.Linear and model.head.weight is model.embedding.weight
    before = model.state_dict().keys()
    assert zoo.factorize(model, 4).state_dict().keys() != before  # the first block, whose turn it is now
    assert isinstance(model.blocks[1].mlp.w1.to_rank, nn.Linear)
    pair = nn.Sequential(nn.Conv1d(8, 8, 3, groups=8), nn.Linear(40, 40), nn.Linear(40, 3))
    zoo.factorize(pair, 3, solver="random")
    assert [type(layer) for layer in pair] == [nn.Conv1d, LowRank, nn.Linear]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be an integer from 1 on, or a fraction between 0 and 1, got 0"),
        ({"rank": 2.5}, "got 2.5"),
        ({"rank": 4, "solver": "svds"}, "unknown solver 'svds', did you mean 'svd'"),
        ({"rank": 4, "skip": ["heads"]}, "skip names no layer by 'heads'; names are as '0'"),
        ({"rank": 4, "skip": "heads"}, "skip names no layer by 'heads'; names are as '0'"),
        ({"rank": 4, "skip": None}, "skip must be a pattern of names or several, got None"),
        ({"rank": 30}, "rank 30 makes none of the 2 layers smaller"),
    ],
)
def test_wrong_options_say_the_rule(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        zoo.factorize(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 8)), **options)


@pytest.mark.parametrize("name", ["transformer_nano", "mcunet_nano"])
def test_factors_may_be_compressed_further(name, tmp_path):
    model: Any = zoo.quantize(zoo.factorize(zoo.create_model(name), 0.5), bits=8).eval()
    x = inputs(model)
    zoo.save_model(model, tmp_path)
    assert torch.equal(zoo.create_model(f"local-dir:{tmp_path}").eval()(x), model(x))


def test_what_is_compressed_is_not_factorised():
    model = zoo.quantize(zoo.create_model("transformer_nano"), bits=8)
    with pytest.raises(ValueError, match=r"zoo\.factorize comes before zoo\.quantize"):
        zoo.factorize(model, 8)


def test_the_command(tmp_path, capsys):
    target = tmp_path / "small"
    arguments = ["factorize", "transformer_nano", str(target), "--rank", "0.5", "--skip", "blocks.0.*"]
    assert main(arguments) == 0
    model: Any = zoo.create_model(f"local-dir:{target}").eval()
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,} of {zoo.model_info('transformer_nano').num_parameters:,} parameters" in capsys.readouterr().out
    expected: Any = zoo.factorize(zoo.create_model("transformer_nano", pretrained=True), 0.5, skip=["blocks.0.*"])
    x = inputs(model)
    assert torch.equal(model(x), expected.eval()(x))
    for wrong in (["--rank", "many"], ["--rank", "0"], ["--rank", "8", "--solver", "qr"]):
        try:
            assert main([*arguments[:3], *wrong]) == 2
        except SystemExit as error:
            assert error.code == 2


def test_factors_that_fit_no_layer_are_refused(tmp_path):
    model: Any = zoo.factorize(zoo.create_model("transformer_nano"), 8)
    tensors = {name.replace("mlp.w1", "mlp.w9"): tensor for name, tensor in model.state_dict().items()}
    torch.save(tensors, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=r"factors of layers that the model has not: blocks\.0\.mlp\.w9"):
        zoo.create_model("transformer_nano", checkpoint_path=tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=r"rank must lie in \[1, 7\].*got 8"):
        LowRank(nn.Linear(12, 7), 8)

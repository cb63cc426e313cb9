"""A store of models that share blocks: what is kept once, what comes back, what goes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo.adapt import own_names
from zoo.checkpoints.blocks import BlockStore, cut

NAME = "transformer_nano"


def tokens() -> torch.Tensor:
    return torch.arange(24).reshape(2, 12)


def size_of(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.fixture
def base() -> Any:
    return zoo.create_model(NAME, pretrained=True).eval()


def moved(model: Any, *patterns: str) -> Any:
    """With other numbers where a name has one of the patterns in it."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(pattern in name for pattern in patterns):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_blocks_that_are_equal_are_kept_and_loaded_once(base, tmp_path):
    store = zoo.SharedModels(tmp_path)
    assert store.add("base", base) == size_of(base) and store.add("again", base) == 0
    part = moved(zoo.create_model(NAME, pretrained=True).eval(), "blocks.2.mlp.")
    changed = sum(parameter.nbytes for parameter in part.blocks[2].mlp.parameters())
    assert store.add("part", part) == changed and store.blocks.nbytes == size_of(base) + changed
    first, second = store.load("base"), store.load("part")
    assert torch.equal(first(tokens()), base(tokens())) and torch.equal(second(tokens()), part(tokens()))
    same = {key for key, p in first.named_parameters() if p.data_ptr() == second.get_parameter(key).data_ptr()}
    assert same == {key for key, _ in first.named_parameters() if not key.startswith("blocks.2.mlp.")}
    assert store.blocks.shared("part", "base") == pytest.approx(1 - changed / size_of(base))
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize("kind", ["paca", "lora", "ladder"])
def test_adapted_models_share_the_whole_of_their_base(base, tmp_path, kind):
    store = zoo.SharedModels(tmp_path)
    store.add("base", base)
    model = moved(zoo.adapt(zoo.create_model(NAME, pretrained=True).eval(), kind), "columns", "lora_", "up.weight")
    own = sum(model.state_dict()[name].nbytes for name in own_names(model))
    assert own - 16 < store.add("tuned", model) <= own, "equal gates are kept once, too"
    loaded: Any = store.load("tuned")
    assert torch.equal(loaded(tokens()), model(tokens()))
    plain: Any = store.load("base")
    assert loaded.embedding.weight.data_ptr() == plain.embedding.weight.data_ptr()


def test_what_no_model_has_goes(base, tmp_path):
    store = zoo.SharedModels(tmp_path)
    store.add("base", base)
    store.add("other", moved(zoo.create_model(NAME, pretrained=True), "norm"))
    store.blocks.remove("base")
    assert store.blocks.names == ["other"] and torch.isfinite(store.load("other")(tokens())).all()
    store.add("other", base)  # in the place of the one before
    assert store.blocks.nbytes == size_of(base) and torch.equal(store.load("other")(tokens()), base(tokens()))
    store.blocks.remove("other")
    assert store.blocks.nbytes == 0 and not list((tmp_path / "blocks").iterdir())


def test_similar_blocks_are_taken_for_equal_where_that_is_wished(base, tmp_path):
    near = zoo.create_model(NAME, pretrained=True).eval()
    with torch.no_grad():
        for parameter in near.blocks[0].mlp.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn_like(parameter))
    store = zoo.SharedModels(tmp_path)
    store.add("base", base)
    assert store.add("kept", near) > 0
    assert store.add("near", near, similar=0.9999) == 0
    for name in ("kept", "near"):
        store.blocks.remove(name)
    assert store.add("near", near, similar=0.9999) == 0
    found, exact = store.load("near")(tokens()), near(tokens())
    assert torch.equal(found, base(tokens())) and 0 < (found - exact).abs().max() < 0.1


def test_names_are_cut_after_the_first_number():
    tensors = {key: torch.zeros(1) for key in ("embedding.weight", "scale", "blocks.0.mixer.a.weight", "blocks.0.D")}
    parts = {block: list(held) for block, held in cut(tensors, ["blocks.0.mixer.a.weight"]).items()}
    assert parts == {"embedding": ["weight"], "scale": ["."], "blocks.0.mixer apart": ["a.weight"], "blocks.0.D": ["."]}


def test_wrong_names_and_damaged_lists(base, tmp_path):
    store = zoo.SharedModels(tmp_path)
    store.add("base", base)
    with pytest.raises(FileNotFoundError, match="has no model 'bases'; it has base"):
        store.load("bases")
    for name, options, message in [("../x", {}, "a model's name has"), ("x", {"similar": 2.0}, "similar is a cosine")]:
        with pytest.raises(ValueError, match=message):
            store.add(name, base, **options)
    with pytest.raises(ValueError, match="takes a model of create_model, got Linear"):
        store.add("x", nn.Linear(1, 1))
    (tmp_path / "models" / "base.json").write_text('{"blocks": {"a": "../../x"}, "config": {}}')
    with pytest.raises(ValueError, match="lists no blocks"):
        BlockStore(tmp_path).read("base")


def test_what_is_written_and_not_yet_listed_stays(tmp_path, monkeypatch):
    """Another writer's sweep waits until the list is there."""
    one, other = BlockStore(tmp_path), BlockStore(tmp_path)
    written, go = threading.Event(), threading.Event()
    write = one._write

    def slow(key, tensors):
        write(key, tensors)
        written.set()
        go.wait(0.2)

    monkeypatch.setattr(one, "_write", slow)
    first = threading.Thread(target=one.add, args=("one", {"a.weight": torch.ones(2)}, {}))
    first.start()
    written.wait(5)
    other.add("other", {"a.weight": torch.zeros(2)}, {})
    go.set()
    first.join()
    assert torch.equal(other.read("one")[0]["a.weight"], torch.ones(2))

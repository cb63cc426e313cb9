"""What every memory method keeps: the gradients, in any model that it accepts; its options, and what it excludes."""

from __future__ import annotations

import copy
import dataclasses
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from cases.names import KINDS, by_kind
from zoo.kernels.flops import flop_counter
from zoo.train.memory import MEMORIES, Memory, as_memories, lean
from zoo.train.memory.options import with_memory

CASES: dict[str, dict[str, Any]] = {
    "checkpointing": {},
    "streambp": {"chunk_size": 7},
    "reversible": {},
    "memo": {"alpha": 0.4, "keep": 1},
    "ssdtrain": {"resident": 2**14, "smallest": 2**6},
    "coat": {"activations": False},
    "lemo": {"keep": 1.0, "layers": (1,)},
}  # kind -> options
CHANGES = {"reversible": [{"kind": "reversible"}]}  # of the transformer, for methods that ask for some
OTHERS = {"sltt"}  # of other models
LANGUAGE = zoo.list_models("*_nano", task="language")
LENGTH = 72  # more than any of them sees at once, so that what lies beyond is computed too


def tensors() -> list[Tensor]:
    return [one for one in gc.get_objects() if type(one) is Tensor]


def built(name: str, **options: Any) -> Any:
    """A model without zeros: a branch that starts closed hides what is in it."""
    torch.manual_seed(0)
    model = zoo.create_model(name, dtype=torch.float64, **options).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def transformer(kind: str, **options: Any) -> Any:
    """One that the method accepts."""
    return built("transformer_nano", changes=CHANGES.get(kind, []), **options)


def gradients(model: Any, x: Tensor, **options: Any) -> list[Tensor | None]:
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(x, labels=x, **options) if x.dtype == torch.int64 else model(x).square().mean()
    (loss + sum(zoo.auxiliary_losses(model).values())).backward()
    return [parameter.grad for parameter in model.parameters()]


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_every_method_is_tested():
    assert set(CASES) | OTHERS == set(MEMORIES)


def everywhere() -> list[Any]:
    """Each method on a few models, and StreamBP, which asks most of a layer, on each of them."""
    few = ("transformer_nano", "mamba2_nano", "mod_nano", "zamba2_nano", "s4_nano", "scatterbrain_nano")
    rest = [pytest.param(kind, name) for kind in CASES if kind != "streambp" for name in few]
    every = by_kind(LANGUAGE, (*KINDS, "scatterbrain_nano"))
    return [*rest, *(pytest.param("streambp", *one.values, marks=one.marks) for one in every)]


@pytest.mark.parametrize(("kind", "name"), everywhere())
def test_gradients_are_the_same_or_the_model_is_refused(kind, name):
    model, x = built(name), torch.randint(0, 255, (2, LENGTH))
    assert all((getattr(module, "window", None) or 0) < LENGTH for module in model.modules())
    try:
        memory = lean(model, kind, **CASES[kind] | ({"chunk_size": 17} if kind == "streambp" else {}))
    except ValueError as error:
        assert ": take " in str(error), "the way out"
        return
    expected = gradients(copy.deepcopy(model).eval(), x)
    found = gradients(model, x)
    memory.remove()
    if not any(isinstance(module, nn.Dropout) for module in model.modules()):
        assert_same(found, gradients(model, x))
    assert len(found) == len(expected) and not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("kind", CASES)
def test_blocks_that_were_computed_again_before_still_are_afterwards(kind):
    model = transformer(kind)
    model.set_grad_checkpointing(True)
    lean(model, kind, **CASES[kind]).remove()
    assert model.grad_checkpointing
    model.set_grad_checkpointing(False)
    lean(model, kind, **CASES[kind]).remove()
    assert not model.grad_checkpointing


@pytest.mark.parametrize("kind", CASES)
def test_packed_sequences_padding_and_ignored_labels(kind):
    model, x = transformer(kind, window=9, full_layers=(1,)), torch.randint(0, 255, (3, 24))
    ids = torch.tensor([[0] * 10 + [1] * 14, [-1] * 5 + [0] * 19, [0] * 3 + [1] * 8 + [2] * 13])
    labels = x.masked_fill(torch.rand(3, 24) < 0.3, -100)
    labels[:, :8] = -100
    expected = [None if g is None else g.clone() for g in gradients(model, x, seq_idx=ids)]
    lean(model, kind, **CASES[kind])
    assert_same(gradients(model, x, seq_idx=ids), expected)


@pytest.mark.parametrize("kind", CASES)
def test_steps_leave_nothing_behind(kind):
    model, x, counts = transformer(kind), torch.randint(0, 255, (2, 24)), []
    lean(model, kind, **CASES[kind])
    gc.collect()
    others = tensors()  # held, so that what earlier tests made cannot go away in between and hide what is left here
    for _ in range(3):
        gradients(model, x)
        gc.collect()
        counts.append(len(tensors()))
    del others
    assert counts[1] == counts[2]


@pytest.mark.parametrize("kind", CASES)
def test_only_training_steps_are_changed(kind):
    model, x = transformer(kind), torch.randint(0, 255, (2, 24))
    expected = model.eval()(x, labels=x)
    lean(model, kind, **CASES[kind])
    assert torch.equal(model(x, labels=x), expected)
    with torch.no_grad():
        assert torch.equal(model.train()(x, labels=x), expected)
    with pytest.raises(ValueError, match="tokens must be"):
        model(x.float())
    assert_same(gradients(model, x), gradients(model, x))  # an error leaves nothing open


@pytest.mark.parametrize("kind", CASES)
def test_adapters_and_frozen_layers(kind):
    model, x = transformer(kind), torch.randint(0, 255, (2, 24))
    zoo.adapt(model, "paca", rank=3, targets=("blocks.1.*", "blocks.2.*.w1"))
    expected = [None if g is None else g.clone() for g in gradients(model, x)]
    lean(model, kind, **CASES[kind])
    assert_same(gradients(model, x), expected)
    assert sum(g is not None for g in expected) < len(expected)


@pytest.mark.parametrize("kind", CASES)
def test_operations_are_counted(kind):
    """Under a FLOP counter, which puts hooks on what modules are called with."""
    model, x = transformer(kind), torch.randint(0, 255, (2, 24))
    with flop_counter(display=False) as plain:
        gradients(model, x)
    lean(model, kind, **CASES[kind])
    with flop_counter(display=False) as counter:
        gradients(model, x)
    assert counter.get_total_flops() >= plain.get_total_flops() > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other(Memory):
    saves = "optimizer"

    rate: float = 0.1

    def optimizer(self, model: nn.Module, build: Any) -> Any:
        return torch.optim.SGD(build(model).param_groups, lr=self.rate)

    def after_step(self, model: nn.Module, optimizer: Any, step: int) -> None:
        optimizer.param_groups[0]["step"] = step

    def trainer(self) -> dict[str, Any]:
        return {"strategy": "ddp"}


def test_methods_of_other_things_go_together():
    model: Any = zoo.create_model("transformer_nano")
    memory = lean(model, {"kind": "streambp", "chunk_size": 4}, Other())
    optimizer = memory.optimizer(lambda model: torch.optim.AdamW(model.parameters(), lr=1.0))
    memory.after_step(optimizer)
    memory.after_step(optimizer)
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["step"] == 2


def test_where_a_later_method_cannot_be_installed_the_earlier_ones_are_taken_back():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Failing(Other):
        def install(self, model: nn.Module) -> None:
            raise OSError("no such file")

    model: Any = zoo.create_model("transformer_nano", device="meta")
    with pytest.raises(OSError, match="no such file"):
        lean(model, {"kind": "streambp"}, Failing())
    assert not model.grad_checkpointing and not model._forward_hooks


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["streamb"], {}, "did you mean 'streambp'"),
        (["streambp"], {"chunk": 3}, "has no option 'chunk', did you mean 'chunk_size'"),
        (["streambp"], {"chunk_size": 0}, "chunk_size must be at least 1"),
        (["streambp", "checkpointing"], {}, "streambp and checkpointing both save activations: take one"),
        (["streambp", "checkpointing"], {"chunk_size": 3}, "options go with one method's name"),
    ],
)
def test_wrong_options_leave_the_model_alone(methods, options, message):
    model: Any = zoo.create_model("transformer_nano", device="meta")
    with pytest.raises(ValueError, match=message):
        lean(model, *methods, **options)
    assert not model.grad_checkpointing and not model._forward_hooks


def test_a_method_beside_those_that_a_model_has():
    model: Any = zoo.create_model("transformer_nano", device="meta")
    first = lean(model, "streambp")
    with pytest.raises(ValueError, match=r"checkpointing and streambp, which the model has, both save .*remove\(\)"):
        lean(model, "checkpointing")
    second = lean(model, Other())
    with pytest.raises(ValueError, match="which the model has, both save optimizer"):
        lean(model, Other())
    first.remove()
    lean(model, "checkpointing").remove()
    second.remove()
    assert not model._forward_hooks and not model._forward_pre_hooks and not model.grad_checkpointing


def test_options_of_a_command_line(tmp_path, monkeypatch):
    monkeypatch.setitem(MEMORIES, "other", Other)
    recipe = "model: {init_args: {memory: {kind: streambp, chunk_size: 3}}}"
    assert with_memory(["--a", "1"], recipe) == ["--a", "1"]
    (found,) = with_memory(["--memory.chunk_size=8"], recipe)
    assert found == '--model.memory=[{"kind": "streambp", "chunk_size": 8}]'
    found = with_memory(
        ["--memory", "streambp", "--memory=other", "--memory.rate", "0.2", "--x=2"], tmp_path / "unread"
    )
    both = '--model.memory=[{"kind": "streambp"}, {"kind": "other", "rate": 0.2}]'
    assert found == ["--x=2", both, '--trainer.strategy="ddp"']
    assert with_memory(["--memory=other", "--trainer.strategy", "auto"], recipe)[:2] == ["--trainer.strategy", "auto"]
    with pytest.raises(ValueError, match="Name it first"):
        with_memory(["--memory.rate=1"], "model: {}")
    assert [method.kind for method in as_memories({"kind": "streambp"})] == ["streambp"]


def test_a_compiled_model_is_refused_rather_than_trained_without_its_method():
    model, x = transformer("checkpointing"), torch.randint(0, 255, (2, 24))
    lean(model, "checkpointing")
    compiled: Any = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="train without compile"):
        compiled(x, labels=x)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x))

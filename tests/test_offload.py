"""Models within a stated memory: the text, what is held, what is read, and what each policy loads when."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch

import zoo
from zoo.cli import main
from zoo.offload import TPILLM, EdgeMoE, LLMInAFlash, SEMoE, edge_moe
from zoo.offload.files import File
from zoo.offload.offload import stays
from zoo.offload.policy import Offload

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
NEW = 5


def nano(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return zoo.create_model(name, **options).eval()


def text(model: Any) -> list[Any]:
    return zoo.generate(model, PROMPTS, NEW, temperature=0)


def memory_for(model: Any, policy: Offload, slots: int) -> int:
    parts = policy.parts(model)
    return stays(model, parts) + slots * policy.least(parts)


def held(model: Any) -> int:
    """Bytes of all storages."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if max(t.stride(), default=1)
    }
    return sum(storages.values()) + model.offloaded.nbytes


@pytest.mark.parametrize(
    ("name", "policy"),
    [("transformer_nano", TPILLM()), ("mamba2_nano", TPILLM(keep=True)), ("falcon_h1_nano", TPILLM()),
     ("zamba2_nano", TPILLM()), ("mor_nano", TPILLM()), ("moe_nano", SEMoE()), ("moe_nano", EdgeMoE()),
     ("gpt_oss_nano", EdgeMoE(ahead=0)), ("deepseek_nano", EdgeMoE())],
    ids=str,
)  # fmt: skip
def test_the_text_is_that_of_the_model_in_memory_which_is_never_exceeded(name, policy):
    model = nano(name)
    plain, whole = text(model), sum(parameter.nbytes for parameter in model.parameters())
    for slots in (1, 2):
        limit = memory_for(model, policy, slots) + 1
        small = zoo.offload(copy.deepcopy(model), memory=limit, policy=policy)
        found = text(small)
        assert all(torch.equal(*rows) for rows in zip(found, plain, strict=True))
        assert held(small) <= limit and len(small.offloaded.memory) == slots and limit < whole
        assert len(small.offloaded.held) <= slots
        assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_ring_reads_every_part_once_a_pass_and_ahead_of_its_use(tmp_path):
    """From the files of a saved model, in shards too; with room for all it reads nothing more."""
    model = nano("transformer_nano", depth=3)
    zoo.save_model(model, tmp_path, max_shard_size=500_000)
    plain, parts = text(model), TPILLM().parts(model)
    assert len(parts) == 6
    for slots, keep in ((1, False), (2, False), (4, False), (4, True), (6, False)):
        policy = TPILLM(slots=slots, keep=keep)
        small: Any = zoo.offload(tmp_path, memory="1GB", policy=policy)
        traffic, each = small.offloaded.traffic, [unit.nbytes for unit in small.offloaded.units]
        assert all(torch.equal(*rows) for rows in zip(text(small), plain, strict=True))
        small.offloaded.wait()
        first, more = traffic.bytes, small.offloaded.traffic.loads
        text(small)
        small.offloaded.wait()
        turning = 0 if slots == 6 else 4 if keep else 6
        assert traffic.loads - more == NEW * turning and traffic.uses == 2 * NEW * 6
        assert traffic.late == (traffic.uses - 1 if slots == 1 else 0)
        if not keep:
            assert traffic.bytes - first == (NEW * sum(each) if turning else 0)


def test_a_pass_that_was_broken_off_leaves_no_slot_taken(monkeypatch):
    model = nano("transformer_nano")
    small: Any = zoo.offload(copy.deepcopy(model), memory=memory_for(model, TPILLM(), 1) + 1, policy=TPILLM())

    def broken(*_):
        raise KeyboardInterrupt

    for place in (small.blocks[1].mlp.w1, small.blocks[0].mixer.k_proj):
        hook = place.register_forward_pre_hook(broken)
        with pytest.raises(KeyboardInterrupt):
            text(small)
        hook.remove()
    small.offloaded.wait()
    monkeypatch.setattr(File, "read", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        text(small)
    monkeypatch.undo()
    assert all(torch.equal(*rows) for rows in zip(text(small), text(model), strict=True))


def test_a_model_in_memory_is_written_to_a_file_without_a_name(tmp_path):
    model = nano("moe_nano")
    small = zoo.offload(copy.deepcopy(model), memory="1GB", policy="se_moe", folder=tmp_path)
    assert all(torch.equal(*rows) for rows in zip(text(small), text(model), strict=True))
    assert not any(tmp_path.iterdir())


def test_se_moe_holds_the_experts_of_layers_in_a_ring():
    model = nano("moe_nano")
    layers = len(model.experts)
    small = zoo.offload(model, memory=memory_for(model, SEMoE(), 2), policy="se_moe")
    text(small)
    small.offloaded.wait()
    loads = small.offloaded.traffic.loads
    text(small)
    small.offloaded.wait()
    assert small.offloaded.traffic.loads - loads == NEW * layers and small.offloaded.traffic.late == 0


def test_edge_moe_loads_what_routers_ask_for_and_learns_what_follows():
    model = nano("moe_nano")
    experts = sum(layer.num_experts for layer in model.experts)
    small = zoo.offload(copy.deepcopy(model), memory="1GB", policy=EdgeMoE(ahead=0))
    text(small)
    asked = small.offloaded.traffic
    assert asked.loads == asked.late == len(small.offloaded.held) <= experts  # each expert once
    late = []
    for ahead in (0, 2):
        policy = EdgeMoE(slots=4, ahead=ahead)
        small = zoo.offload(copy.deepcopy(model), memory="1GB", policy=policy)
        zoo.generate(small, [[5, 6, 7]], 30, temperature=0)
        late.append(small.offloaded.traffic.late / small.offloaded.traffic.uses)
    assert late[1] < late[0]


def test_what_makes_room_is_of_least_use_by_how_soon_it_runs_again():
    model = nano("moe_nano", depth=3)
    small = zoo.offload(model, memory="1GB", policy=EdgeMoE())
    buffer: Any = small.offloaded.leaves.__self__  # type: ignore[attr-defined]
    count = model.experts[0].num_experts
    buffer.now = 1
    buffer.uses.update({0: 4, count: 9, 2 * count: 3})  # of layers 0, 1 and 2: 2, 3 and 1 layers away
    assert buffer.leaves([0, count, 2 * count]) == 0  # 4 / 2 < 9 / 3, 3 / 1


def test_the_command_line_decodes_within_a_memory(tmp_path, capsys):
    zoo.save_model(zoo.create_model("transformer_nano", pretrained=True), tmp_path / "model")
    command = ["--prompt", "The ", "--temperature", "0", "--max-new-tokens", "4"]
    assert main(["generate", "transformer_nano", *command]) == 0
    plain = capsys.readouterr().out
    for name, memory in ((str(tmp_path / "model"), "1.4MB"), ("transformer_nano", "1MB")):
        assert main(["generate", name, *command, "--offload", memory]) == 0
        shown = capsys.readouterr()
        assert shown.out == plain and "bytes read in" in shown.err
    for wrong, message in (
        (["--offload", "1KB"], "must hold what stays"), (["--offload-policy", "se_moe"], "without --offload MEMORY"),
        (["--offload", "1MB", "--offload-policy", "se_moe"], "has no experts to offload"),
    ):  # fmt: skip
        assert main(["generate", "transformer_nano", *command, *wrong]) == 2
        assert message in capsys.readouterr().err


def relufied(name: str) -> Any:
    """A model whose feed-forward layers have a ReLU."""
    model = nano(name)
    if name == "transformer_nano":
        for block in model.blocks:
            block.mlp.act = torch.relu
    return model


@pytest.mark.parametrize("name", ["transformer_nano", "nemotron_h_nano"])
def test_neurons_that_were_not_active_in_the_window_are_read(name):
    """Bundles of both matrices, or of one; as many bytes as the formula says, of a batch that reads a union."""
    model = relufied(name)
    plain = text(model)
    layers = [block.mlp for block in model.blocks if block.mlp is not None]
    active: list[list[set[int]]] = [[] for _ in layers]

    def note(index: int, layer: Any, inputs: Any, output: Any) -> None:
        active[index].append(set((output.flatten(0, -2) > 0).any(0).nonzero()[:, 0].tolist()))

    hooks = [layer.w1.register_forward_hook(partial(note, index)) for index, layer in enumerate(layers)]
    for window in (2, None):
        small: Any = zoo.offload(copy.deepcopy(model), memory="1GB", policy=LLMInAFlash(window=window))
        for one in active:
            one.clear()
        assert all(torch.equal(*rows) for rows in zip(text(small), plain, strict=True))
        new = 0
        for passes in active:
            for t, now in enumerate(passes):
                past = passes[max(0, t - window) if window else 0 : t]
                new += len(now - set().union(*past))
        width = 1 if name == "nemotron_h_nano" else 2
        assert small.offloaded.traffic.loads == new
        assert small.offloaded.traffic.bytes == new * width * model.config.dim * 4
    for hook in hooks:
        hook.remove()
    for room in (1, 7):  # neurons a layer: fewer than are active
        limit = memory_for(model, LLMInAFlash(), room)
        small = zoo.offload(copy.deepcopy(model), memory=limit, policy="llm_in_a_flash")
        assert all(torch.equal(*rows) for rows in zip(text(small), plain, strict=True)) and held(small) <= limit


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transformer_nano", {"memory": 10_000}, "must hold what stays, .* and one part of the rest.*got 10,000"),
        ("transformer_nano", {"memory": "0.5"}, "a number with a unit .*got '0.5'"),
        ("transformer_nano", {"memory": "1GB", "policy": "edge_moe"}, "no experts to offload: take policy='tpi_llm'"),
        ("transformer_nano", {"memory": "1GB", "policy": "tpi_lm"}, "offload 'tpi_lm', did you mean 'tpi_llm'"),
        ("moe_nano", {"memory": "1GB", "policy": "llm_in_a_flash"}, "no feed-forward layers of a ReLU"),
        ("vim_nano", {"memory": "1GB"}, "takes a language model that is plain"),
    ],
)  # fmt: skip
def test_wrong_input_says_so(name, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.offload(nano(name), **options)


def test_an_offloaded_model_is_neither_saved_nor_offloaded_again(tmp_path):
    small = zoo.offload(nano("mamba2_nano"), memory="1GB")
    with pytest.raises(ValueError, match="save the model before zoo"):
        zoo.save_model(small, tmp_path / "model")
    with pytest.raises(ValueError, match="not offloaded yet"):
        zoo.offload(small, memory="1GB")
    with pytest.raises(ValueError, match="is no folder of a saved model"):
        zoo.offload(tmp_path / "nothing", memory="1GB")
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        TPILLM(slots=0)


def test_an_offloaded_model_is_not_copied():
    small = zoo.offload(nano("transformer_nano", depth=1), memory="1GB")
    for call in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copy it before zoo"):
            call(small)


def test_what_was_asked_for_is_remembered_of_late(monkeypatch):
    monkeypatch.setattr(edge_moe, "KNOWN", 3)
    small = zoo.offload(nano("moe_nano"), memory="1GB", policy=EdgeMoE())
    buffer: Any = small.offloaded.leaves.__self__  # type: ignore[attr-defined]
    keys = [(frozenset([e]),) for e in range(4)]
    for e in (0, 1, 2, 0, 3):
        buffer.asked = list(keys[e])
        buffer.ask(0, [e])
    assert list(buffer.followed) == [keys[2], keys[0], keys[3]] and buffer.followed[keys[0]] == {0: 2}

"""What ``zoo.quantize`` refuses before it begins, and what a call that broke off leaves behind."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

import zoo
from zoo.layers.quant import Format, records
from zoo.quantize import Calibration

TOKENS = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))


def model() -> Any:
    return zoo.create_model("transformer_nano", dim=32, num_heads=2, num_kv_heads=1, mlp_dim=32, depth=2).eval()


def emulated(net: Any) -> Any:
    return zoo.emulate(net, 4, 3)


def activations_alone(net: Any) -> Any:
    return zoo.emulate(net, 4, 3, weights=False)


def normalised(net: Any) -> Any:
    nn.utils.parametrizations.weight_norm(net.blocks[0].mixer.q_proj)
    return net


def normalised_by_a_hook(net: Any) -> Any:
    weight_norm(net.blocks[0].mixer.q_proj)
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("change", "message"), [
    (emulated, "emulated in a format: quantise the model that it was made from"),
    (activations_alone, "emulated in a format"), (zoo.sparsify, "is kept as SparseMatrix .* take the model that it"),
    (normalised, "q_proj.weight is kept as _WeightNorm: .*remove_parametrizations"),
    (normalised_by_a_hook, "q_proj.weight is kept as Tensor"),
])  # fmt: skip
def test_weights_that_are_kept_otherwise_are_not_passed_over(change, message):
    net = change(model())
    with pytest.raises(ValueError, match=message):
        zoo.quantize(net)
    assert not records(net)


@pytest.mark.parametrize("learn", [zoo.round_weights, zoo.noisy_weights])
def test_nor_by_what_learns_for_a_few_bits(learn):
    with pytest.raises(ValueError, match="is kept as Rounded"):
        learn(emulated(model()))


def test_weights_that_are_kept_otherwise_may_be_skipped():
    name = "blocks.0.mixer.q_proj"
    net = zoo.quantize(normalised(model()), skip=f"{name}.weight")
    assert f"{name}.weight" not in records(net) and "blocks.1.mixer.q_proj.weight" in records(net)


class Broken(BaseException):
    """As Ctrl-C is."""


@pytest.mark.parametrize("method", ["smoothquant_plus", "omniquant"])
def test_a_call_that_broke_off_goes_on_with_the_same_model(method, tmp_path):
    """Factors that were folded in are out again, and so is eval mode."""
    net, seen = model().train(), Calibration([TOKENS])
    call: dict[str, Any] = {
        "calibration": seen,
        "folder": tmp_path,
        **({"bits": 2, "epochs": 3} if method == "omniquant" else {}),
    }
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = zoo.quantize(copy.deepcopy(net), method, **call | {"folder": None}).state_dict()

    def late(done: int, total: int) -> None:
        if done == total - 2:
            raise Broken

    with pytest.raises(Broken):
        zoo.quantize(net, method, progress=late, **call)
    assert net.training and all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    found = zoo.quantize(net, method, **call).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_cannot_be_run_is_left_in_train_mode():
    net = model().train()
    net.blocks[1].register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        zoo.quantize(net, "baq", calibration=TOKENS)
    assert net.training


def test_all_pieces_are_known_before_the_last():
    for method in ("smoothquant_plus", "omniquant"):
        seen: list[tuple[int, int]] = []
        options = {"steps": 3} if method == "smoothquant_plus" else {"epochs": 0}
        zoo.quantize(model(), method, calibration=TOKENS, progress=lambda *now, seen=seen: seen.append(now), **options)
        assert all(done < total for done, total in seen[:-1]) and seen[-1][0] == seen[-1][1]


@dataclasses.dataclass
class Answer:
    logits: Tensor


class Wrapped(nn.Module):
    """Gives what it says by another name."""

    def __init__(self, kind: Any):
        super().__init__()
        self.inner, self.kind = model(), kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(self.inner(x))


@pytest.mark.parametrize(("method", "options"), [
    ("smoothquant_plus", {"steps": 1}), ("omniquant", {"epochs": 1}), ("baq", {}), ("topkld", {"epochs": 1}),
])  # fmt: skip
def test_logits_among_what_a_model_returns(method, options):
    plain, other = Wrapped(lambda x: x), Wrapped(Answer)
    other.load_state_dict(plain.state_dict())
    expected = zoo.quantize(plain, method, calibration=TOKENS, **options).state_dict()
    found = zoo.quantize(other, method, calibration=TOKENS, **options).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(TypeError, match=r"a tensor or \.logits, got list: wrap the model"):
        zoo.quantize(Wrapped(lambda x: [x]), method, calibration=TOKENS, **options)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"skip": None}, TypeError, "skip must be a pattern of names or several, got None"),
    ({"method": None}, TypeError, "method must be a name, got None"),
    ({"progress": 3}, TypeError, "progress must be called with"),
    ({"layout": "nested", "base_bits": 2.0}, ValueError, r"base_bits must be an integer, got 2\.0"),
    ({"layout": None}, ValueError, "layout must be a word, got None"),
    ({"method": "baq", "budget": "3"}, ValueError, "budget must be a number or None, got '3'"),
    ({"method": "smoothquant_plus", "steps": 1.5}, ValueError, r"steps must be an integer, got 1\.5"),
    ({"group_size": True}, ValueError, "group_size must be an integer or None, got True"),
    ({"group_rows": True}, ValueError, "group_rows must be an integer, got True"),
    ({"activation_bits": 8.0}, ValueError, r"activation_bits must be an integer or None, got 8\.0"),
    ({"symmetric": "no"}, ValueError, "symmetric must be True or False, got 'no'"),
    ({"method": "omniquant", "clip_lr": float("nan")}, ValueError, "clip_lr must be a number, got nan"),
    ({"method": "easyquant", "deviations": float("nan")}, ValueError, "deviations must be a number, got nan"),
])  # fmt: skip
def test_options_of_another_type(options, error, message):
    with pytest.raises(error, match=message):
        zoo.quantize(model(), **options)


def test_formats_of_another_type():
    with pytest.raises(ValueError, match="group_size must be an integer or None, got True"):
        Format(group_size=True)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder must be a folder, which may be new, .*file is a file"):
        zoo.quantize(model(), folder=tmp_path / "file")


@pytest.mark.parametrize("method", ["rtn", "baq", "omniquant"])
def test_what_is_no_number_is_refused_before_the_search(method):
    net, pieces = model(), []
    net.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="holds infinities or what is no number"):
        zoo.quantize(net, method, calibration=TOKENS, progress=lambda *now: pieces.append(now))
    assert not pieces

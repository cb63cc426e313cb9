from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.kernels import available_implementations, linear_cross_entropy
from zoo.kernels.cross_entropy import chunked

FAST = ["chunked", "triton"]
ALL = ["reference", *FAST]
OPTIONS = {
    "plain": {},
    "z_loss": {"z_loss": 0.1},
    "softcap": {"softcap": 2.0},
    "label_smoothing": {"label_smoothing": 0.2},
    "all": {"z_loss": 0.1, "softcap": 2.0, "label_smoothing": 0.2},
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """The last one is short."""
    monkeypatch.setattr(chunked, "TILE", 16)


def make_inputs(rows=50, dim=8, vocabulary=30, dtype=torch.float32, bias=False) -> dict[str, Tensor]:
    labels = torch.randint(0, vocabulary, (rows,))
    labels[::7] = -100
    inputs = {
        "hidden": torch.randn(rows, dim).to(dtype),
        "weight": torch.randn(vocabulary, dim).to(dtype),
        "labels": labels,
    }
    return inputs | ({"bias": torch.randn(vocabulary).to(dtype)} if bias else {})


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
def test_is_cross_entropy_of_the_logits(impl, label_smoothing):
    hidden, weight, labels, bias = make_inputs(dtype=torch.float64, bias=True).values()
    expected = F.cross_entropy(F.linear(hidden, weight, bias), labels, label_smoothing=label_smoothing)
    call = partial(linear_cross_entropy, label_smoothing=label_smoothing, impl=impl, chunk_size=16)
    torch.testing.assert_close(call(hidden, weight, labels, bias=bias), expected)
    torch.testing.assert_close(call(hidden, weight, labels.int(), bias=bias), expected)


@pytest.mark.parametrize("impl", ALL)
def test_softcap_and_z_loss_are_their_definitions(impl):
    hidden, weight, labels = make_inputs(dtype=torch.float64).values()
    logits = 2 * torch.tanh(hidden @ weight.mT / 2)
    square = torch.logsumexp(logits, dim=-1)[labels != -100].square().mean()
    found = linear_cross_entropy(hidden, weight, labels, softcap=2.0, z_loss=0.1, impl=impl)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels) + 0.1 * square)


@options
@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_accuracy(impl, dtype, options, assert_accurate):
    call = partial(linear_cross_entropy, chunk_size=16, **options)
    assert_accurate(call, make_inputs(dtype=dtype, bias=True), impl)


@options
@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 1), (70, 70, 5), (5, 17, 300)], ids=str)
def test_accuracy_over_sizes(impl, shape, options, assert_accurate):
    inputs = make_inputs(*shape)
    inputs["labels"][0] = 0
    options = options if shape[2] > 1 else options | {"label_smoothing": 0.0}  # of one word: no gradient but rounding
    assert_accurate(partial(linear_cross_entropy, **options), inputs, impl)


@options
def test_accuracy_of_a_large_vocabulary(options, assert_accurate):
    call = partial(linear_cross_entropy, chunk_size=100, **options)
    assert_accurate(call, make_inputs(300, 32, 5000, bias=True), "chunked")


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("softcap", [None, 100.0])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1e3])
def test_accuracy_of_large_and_small_logits(impl, softcap, scale, assert_accurate):
    inputs = make_inputs()
    inputs["hidden"] = inputs["hidden"] * scale
    assert_accurate(partial(linear_cross_entropy, softcap=softcap), inputs, impl)


@options
@pytest.mark.parametrize("impl", ALL)
def test_gradcheck(impl, options):
    hidden, weight, labels, bias = make_inputs(3, 2, 4, torch.float64, bias=True).values()

    def call(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, labels, bias=bias, impl=impl, chunk_size=2, **options)

    assert torch.autograd.gradcheck(call, tuple(t.requires_grad_() for t in (hidden, weight, bias)))


@pytest.mark.parametrize("impl", FAST)
def test_the_vocabulary_in_parts(impl, monkeypatch):
    """Rows and columns that do not fill their chunks, in several of both."""
    if impl == "triton":
        from zoo.kernels.cross_entropy import triton

        monkeypatch.setattr(triton, "SCRATCH", 1000)
        monkeypatch.setitem(triton.DEFAULTS, "float32", triton.DEFAULTS["float32"] | {"BM": 16, "BN": 16, "BK": 16})
        monkeypatch.setattr(triton, "PROGRAMS", 4)
    else:
        monkeypatch.setattr(chunked, "LARGEST", 1000)
    inputs = make_inputs(45, 9, 83, bias=True)
    leaves = {name: t.requires_grad_(t.is_floating_point()) for name, t in inputs.items()}
    found = []
    for name in (impl, "reference"):
        loss = linear_cross_entropy(**leaves, z_loss=0.1, label_smoothing=0.1, chunk_size=20, impl=name)
        found.append([loss, *torch.autograd.grad(loss, [t for t in leaves.values() if t.requires_grad])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", ALL)
def test_a_word_may_be_ruled_out(impl):
    """A bias of minus infinity, also over whole tiles of the vocabulary."""
    inputs = make_inputs(20, 4, 300, torch.float64, bias=True)
    inputs["labels"].clamp_(max=99)
    inputs["bias"][100:] = -torch.inf
    fewer = inputs | {"weight": inputs["weight"][:100], "bias": inputs["bias"][:100]}
    leaves = {name: t.requires_grad_() for name, t in inputs.items() if name != "labels"}
    loss = linear_cross_entropy(**inputs, impl=impl)
    torch.testing.assert_close(loss, linear_cross_entropy(**fewer, impl="reference"))
    for gradient in torch.autograd.grad(loss, list(leaves.values())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("impl", ALL)
def test_nothing_to_score_is_zero_with_zero_gradients(impl):
    inputs = make_inputs()
    for rows in (50, 0):
        hidden = inputs["hidden"][:rows].requires_grad_()
        loss = linear_cross_entropy(hidden, inputs["weight"], torch.full((rows,), -100), impl=impl)
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert loss == 0 and gradient.shape == (rows, 8) and not gradient.any()


@pytest.mark.parametrize("impl", ALL)
def test_rows_that_do_not_count_change_nothing(impl):
    inputs = make_inputs()
    counted = inputs["labels"] != -100
    expected = linear_cross_entropy(
        inputs["hidden"][counted], inputs["weight"], inputs["labels"][counted], z_loss=0.1, impl=impl
    )
    torch.testing.assert_close(linear_cross_entropy(**inputs, z_loss=0.1, impl=impl), expected)
    other = inputs | {"labels": inputs["labels"].where(counted, 5)}
    other["labels"][counted & (inputs["labels"] == 5)] = 6
    plain = linear_cross_entropy(**(other | {"labels": other["labels"].where(counted, -100)}), impl=impl)
    torch.testing.assert_close(linear_cross_entropy(**other, ignore_index=5, impl=impl), plain)


@pytest.mark.parametrize("impl", ALL)
def test_labels_out_of_range_do_not_pass_unseen(impl):
    inputs = make_inputs()
    for wrong in (30, -1):
        inputs["labels"][3] = wrong
        if impl == "triton":
            assert linear_cross_entropy(**inputs, impl=impl).isnan()
        else:
            with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
                linear_cross_entropy(**inputs, impl=impl)


@pytest.mark.parametrize("impl", ALL)
def test_the_loss_is_the_same_without_gradients_and_scales_them(impl):
    inputs = make_inputs()
    weight = inputs["weight"].requires_grad_()
    loss = linear_cross_entropy(**inputs, impl=impl)
    (once,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, weight)
    torch.testing.assert_close(thrice, 3 * once)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(**inputs, impl=impl), loss)


def test_chunked_computes_the_logits_once():
    inputs = list(make_inputs(40, 8, 30).values())
    arguments = (inputs[0], inputs[1], None, inputs[2], -100, 0.1, 2.0, 0.1, 7)
    with _Watch() as seen:
        chunked.backward(*arguments)
    products = [name for name in seen.names if "mm" in name]
    assert products == 6 * (2 * ["aten::mm.out"] + 2 * 2 * ["aten::addmm_"])  # 6 chunks of rows, 2 tiles


def test_chunked_never_holds_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(chunked, "LARGEST", 2000)
    inputs = list(make_inputs(400, 2, 500).values())
    with _Watch() as seen:
        chunked.backward(inputs[0], inputs[1], None, inputs[2], -100, 0.1, 2.0, 0.1, 1024)
    assert seen.elements == 2000


def test_chunked_is_preferred():
    assert available_implementations("linear_cross_entropy")[0] == "chunked"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.randn(2, 25, 8)}, "hidden must have shape"),
        ({"weight": torch.randn(30, 7)}, "weight must have shape"),
        ({"labels": torch.zeros(49, dtype=torch.int64)}, "labels must have shape"),
        ({"labels": torch.zeros(50)}, "labels must be int64 token ids"),
        ({"bias": torch.randn(29)}, "bias must have shape"),
        ({"hidden": torch.zeros(50, 8, dtype=torch.int64)}, "hidden must be a floating-point tensor"),
        ({"softcap": 0.0}, "softcap must be None or above 0"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\]"),
        ({"chunk_size": 0}, "chunk_size and V at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_input_names_the_argument(change, message):
    with pytest.raises(ValueError, match=f"linear_cross_entropy: .*{message}"):
        linear_cross_entropy(**(make_inputs() | change))


class _Watch(TorchDispatchMode):
    """Torch's operators that run inside the block, and the most elements of a tensor they return."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func.name())
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result

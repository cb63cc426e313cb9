"""What every operation promises, over ``tests/cases``: each implementation that can run here, forward and backward."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cases import Case, all_cases
from zoo.kernels import available_implementations, implementation
from zoo.kernels.dispatch import _operations as OPERATIONS

CASES = [pytest.param(case, id=case.name) for case in all_cases()]
RUNS = [
    pytest.param(case, impl, id=f"{case.name}-{impl}")
    for case in all_cases()
    for impl in available_implementations(case.operation)
    if os.environ.get("TRITON_INTERPRET") == "1" or impl != "triton"
]
FAST = [run for run in RUNS if run.values[1] not in ("reference", "triton")]
TRITON = [run for run in RUNS if run.values[1] == "triton"]


def differentiable_twice(case: Case, impl: str) -> bool:
    """Without a backward of its own, or with the operation itself as the backward."""
    return case.operation == "rope" or OPERATIONS[case.operation].implementations[impl].backward is None


PACKABLE = [
    run for run in RUNS if run.values[0].over_time and "seq_idx" in inspect.signature(run.values[0].call).parameters
]
IGNORE_GRAD = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck reads it


def outputs(call, impl: str, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found = call(impl=impl, **inputs)
    return tuple(found) if isinstance(found, tuple) else (found,)


def everything(case: Case, impl: str, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs, then the gradients of their sum of squares with respect to every floating input."""
    inputs = {n: t.detach().requires_grad_() if t.is_floating_point() else t for n, t in inputs.items()}
    found = [o for o in outputs(case.call, impl, inputs) if o.is_floating_point()]
    wanted = [t for t in inputs.values() if t.requires_grad]
    return [*(o.detach() for o in found), *torch.autograd.grad(sum(o.square().sum() for o in found), wanted)]


@pytest.mark.parametrize(
    ("batch", "length"), [(3, 1), (2, 63), (1, 300), pytest.param(1, 1000, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("case", CASES)
def test_accuracy_over_lengths(case, batch, length, assert_accurate):
    """All at once against one reference, which takes most of the time."""
    impls = [run.values[1] for run in FAST if run.values[0] is case]
    assert_accurate(case.call, case.inputs(batch, length, torch.float32), *impls)


@pytest.mark.parametrize("length", [1, 35])  # three chunks of 16, the last one short
@pytest.mark.parametrize(("case", "impl"), TRITON)
def test_accuracy_of_triton(case, impl, length, assert_accurate):
    assert_accurate(case.call, case.inputs(2, length, torch.float32), impl)


@pytest.mark.parametrize(("case", "impl"), [run for run in RUNS if run.values[1] != "triton"])
def test_an_empty_batch(case, impl):
    """It has the shapes of a batch of one but for the batch, and gradients of zero."""
    empty, one = (everything(case, impl, case.inputs(batch, 5, torch.float32)) for batch in (0, 1))
    for a, b in zip(empty, one, strict=True):
        assert a.shape in (b.shape, (0, *b.shape[1:])) and not a.any()


@pytest.mark.cuda
@pytest.mark.parametrize("length", [63, 500, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_accuracy_on_cuda(case, dtype, length, assert_accurate):
    inputs = {name: t.cuda() for name, t in case.inputs(2, length, dtype).items()}
    impls = available_implementations(case.operation, "cuda")
    assert_accurate(case.call, inputs, *(impl for impl in impls if impl not in ("reference", "mamba_ssm")))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("case", "impl"), [*FAST, *TRITON])
def test_accuracy_over_dtypes(case, impl, dtype, assert_accurate):
    assert_accurate(case.call, case.inputs(1, 19 if impl == "triton" else 40, dtype), impl)


@pytest.mark.parametrize(("case", "impl"), RUNS)
def test_two_runs_agree_bit_for_bit_and_scratch_memory_never_shows(case, impl):
    """The second run has NaN in every uninitialised tensor."""
    inputs = case.inputs(1, 19, torch.float32)
    first = everything(case, impl, inputs)
    torch.use_deterministic_algorithms(True)  # with torch.utils.deterministic.fill_uninitialized_memory, its default
    try:
        assert torch.empty(1).isnan()
        second = everything(case, impl, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("length", [1, 19])
@pytest.mark.parametrize(("case", "impl"), RUNS)
def test_autocast_changes_nothing(case, impl, length):
    """What runs under autocast has the dtypes it was given already: inside, nothing is rounded further."""
    inputs = case.inputs(1, length, torch.float32)
    expected = outputs(case.call, impl, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outputs(case.call, impl, inputs)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("case", "impl"), RUNS)
def test_strided_inputs_give_the_same(case, impl):
    inputs = case.inputs(2, 19, torch.float32)
    strided = {name: _strided(t) for name, t in inputs.items()}
    for a, b in zip(everything(case, impl, strided), everything(case, impl, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("case", "impl"), RUNS)
def test_strided_gradients_give_the_same(case, impl):
    """Transposed, and broadcast along the last axis as those of a sum."""
    inputs = {n: t.requires_grad_(t.is_floating_point()) for n, t in case.inputs(1, 19, torch.float32).items()}
    found = [o if o.dim() else o[None] for o in outputs(case.call, impl, inputs) if o.requires_grad]
    wanted = [t for t in inputs.values() if t.requires_grad]
    transposed = [torch.randn(o.shape[:-1][::-1]).permute(list(reversed(range(o.dim() - 1)))) for o in found]
    arriving = [dy[..., None].expand(o.shape) for dy, o in zip(transposed, found, strict=True)]
    strided = torch.autograd.grad(found, wanted, arriving, retain_graph=True)
    for a, b in zip(strided, torch.autograd.grad(found, wanted, [dy.contiguous() for dy in arriving]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("case", "impl"), [run for run in RUNS if run.values[0].resumable])
def test_split_and_resume_equals_one_call(case, impl):
    inputs = case.inputs(2, 23, torch.float64)
    state = inputs.pop("initial_state").double()
    inputs = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    whole = outputs(case.call, impl, inputs | {"initial_state": state})
    parts = []
    for part in (slice(0, 9), slice(9, 10), slice(10, 23)):
        piece = {name: t[:, part] if name in case.over_time else t for name, t in inputs.items()}
        output, state = outputs(case.call, impl, piece | {"initial_state": state})
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), whole[0])
    torch.testing.assert_close(state, whole[1])


@pytest.mark.parametrize(("case", "impl"), PACKABLE)
def test_other_sequences_get_no_gradient(case, impl):
    """Not even the rounding of a sum that crosses the boundary: the gradients there are zero, bit for bit."""
    inputs = {n: t.requires_grad_(t.is_floating_point()) for n, t in case.inputs(1, 20, torch.float32).items()}
    seq_idx = torch.tensor([[0] * 9 + [1] * 11])
    first, *_ = outputs(case.call, impl, inputs | {"seq_idx": seq_idx})
    wanted = {name: t for name, t in inputs.items() if t.requires_grad}
    gradients = torch.autograd.grad(first[:, 9:].square().sum(), list(wanted.values()))
    for name, gradient in zip(wanted, gradients, strict=True):
        if name == "initial_state":
            assert not gradient.any(), name
        elif name in case.over_time:
            assert not gradient[:, :9].any(), name
            assert gradient[:, 9:].any(), name


@pytest.mark.parametrize("case", CASES)
def test_compiles_as_one_graph(case):
    inputs = {name: t.requires_grad_(t.is_floating_point()) for name, t in case.inputs(1, 40, torch.float32).items()}
    torch._dynamo.reset()  # the cases share code, and dynamo limits how often it compiles one function
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    for a, b in zip(outputs(compiled, "auto", inputs), outputs(case.call, "auto", inputs), strict=True):
        torch.testing.assert_close(a, b)


@IGNORE_GRAD
@pytest.mark.parametrize(("case", "impl"), RUNS)
def test_operators_are_well_formed(case, impl):
    """Schema, fake tensors, autograd registration and AOT dispatch of every operator in a call and its gradient."""
    with _Recorded() as recorded:
        everything(case, impl, case.inputs(1, 5 if impl == "triton" else 19, torch.float32))
    assert recorded.calls
    for operator, arguments in recorded.calls.items():
        is_backward = "_backward" in str(operator)
        fresh = tuple(_leaf(a, not is_backward) if isinstance(a, Tensor) else a for a in arguments)
        checks = ("test_schema", "test_faketensor") if is_backward else torch.library._OPCHECK_DEFAULT_UTILS
        torch.library.opcheck(operator, fresh, test_utils=checks)


@pytest.mark.parametrize(("batch", "length"), [(1, 19), (1, 1), (0, 19)])
@pytest.mark.parametrize("case", CASES)
def test_an_unknown_implementation_lists_the_known(case, batch, length):
    with pytest.raises(ValueError, match=r"no implementation 'absent'; choose 'auto' or one of \["):
        case.call(impl="absent", **case.inputs(batch, length, torch.float32))


@pytest.mark.parametrize("length", [1, 19])
@pytest.mark.parametrize("case", [case for case in CASES if case.values[0].operation != "rope"])  # it has one tensor
def test_tensors_on_two_devices_are_an_error(case, length):
    """Whichever of them is elsewhere, named in the message."""
    inputs = case.inputs(1, length, torch.float32)
    for name in inputs:
        with pytest.raises(ValueError, match=rf"all tensors must be on one device, got .*{name} on meta"):
            case.call(**inputs | {name: inputs[name].to("meta")})


@pytest.mark.parametrize(("case", "impl"), FAST)
def test_gradients_under_functional_transforms(case, impl):
    """torch.func.grad is autograd's gradient, by itself and under vmap."""
    inputs = _double(case.inputs(1, 6, torch.float64))
    loss, leaves = _loss(case, impl, inputs)
    expected = everything(case, impl, inputs)[-len(leaves) :]
    for found, value in zip(torch.func.grad(loss)(leaves).values(), expected, strict=True):
        torch.testing.assert_close(found, value)
    stacked = {name: torch.stack([t, 0.9 * t]) for name, t in leaves.items()}
    other = torch.func.grad(loss)({name: 0.9 * t for name, t in leaves.items()})
    for name, found in torch.func.vmap(torch.func.grad(loss))(stacked).items():
        torch.testing.assert_close(found[1], other[name])


@pytest.mark.skipif(torch.__version__ < "2.12", reason="the compiler of torch 2.11 follows no autograd.Function there")
@pytest.mark.parametrize("case", {case.values[0].operation: case for case in CASES}.values())
def test_functional_gradients_compile_as_one_graph(case):
    loss, leaves = _loss(case, "auto", case.inputs(1, 9, torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")(leaves)
    for name, expected in torch.func.grad(loss)(leaves).items():
        torch.testing.assert_close(compiled[name], expected)


@pytest.mark.parametrize(("case", "impl"), [run for run in FAST if not differentiable_twice(*run.values)])
def test_second_derivatives_say_where_they_are(case, impl):
    loss, leaves = _loss(case, impl, _double(case.inputs(1, 4, torch.float64)))
    recorded = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    gradient, *_ = torch.autograd.grad(loss(recorded), list(recorded.values()), create_graph=True)
    rule = f"{case.operation}: this implementation has first derivatives only; .*impl='reference'"
    with pytest.raises(RuntimeError, match=rule):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match=rule):
        torch.func.grad(lambda tensors: _squares(torch.func.grad(loss)(tensors)))(leaves)


@pytest.mark.parametrize(
    ("case", "impl"), [run for run in RUNS if run.values[1] != "triton" and differentiable_twice(*run.values)]
)
def test_second_derivatives(case, impl):
    """By autograd, by nested torch.func.grad and by central differences along one direction."""
    loss, leaves = _loss(case, impl, _double(case.inputs(1, 4, torch.float64)))

    def curved(tensors: dict[str, Tensor]) -> Tensor:
        return _squares(torch.func.grad(loss)(tensors))

    recorded = {name: t.clone().requires_grad_() for name, t in leaves.items()}
    gradients = torch.autograd.grad(loss(recorded), list(recorded.values()), create_graph=True)
    second = torch.autograd.grad(_squares(dict(zip(recorded, gradients, strict=True))), list(recorded.values()))
    nested = torch.func.grad(curved)(leaves)
    direction = {name: torch.randn_like(t) for name, t in leaves.items()}
    ahead, behind = ({n: t + sign * 1e-6 * direction[n] for n, t in leaves.items()} for sign in (1, -1))
    slope = sum((d * direction[name]).sum() for name, d in nested.items())
    torch.testing.assert_close(slope, (curved(ahead) - curved(behind)) / 2e-6, rtol=1e-5, atol=1e-5)
    for found, value in zip(second, nested.values(), strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("case", CASES)
def test_a_block_chooses_as_the_argument_does(case):
    with implementation(**{case.operation: "absent"}), pytest.raises(ValueError, match="no implementation 'absent'"):
        case.call(**case.inputs(1, 19, torch.float32))


@pytest.mark.parametrize("setting", ["no Triton", "filled memory"])
def test_in_a_fresh_process(setting, root: Path):
    """Everything works with Triton's import blocked, and gives the same where malloc's memory holds huge numbers."""
    program = f"""
import sys
sys.path.insert(0, {str(root / "tests")!r})
if {setting == "no Triton"}:
    sys.modules["triton"] = None
import torch
from cases import all_cases
for case in all_cases():
    inputs = case.inputs(1, 40, torch.float32)
    inputs = {{n: t.requires_grad_(t.is_floating_point()) for n, t in inputs.items()}}
    found = case.call(**inputs)
    found = [o for o in (found if isinstance(found, tuple) else (found,)) if o.is_floating_point()]
    wanted = [t for t in inputs.values() if t.requires_grad]
    gradients = torch.autograd.grad(sum(o.square().sum() for o in found), wanted)
    print(case.name, *(t.double().sum().item() for t in (*found, *gradients)), sep="\\t")
"""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    if setting == "filled memory":
        environment["MALLOC_PERTURB_"] = "128"  # glibc: every byte of malloc'd memory is 0x7f
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = {name: values for name, *values in (line.split("\t") for line in run.stdout.splitlines())}
    for case in all_cases():
        expected = [t.double().sum().item() for t in everything(case, "auto", case.inputs(1, 40, torch.float32))]
        assert [float(value) for value in lines[case.name]] == pytest.approx(expected, rel=1e-3, abs=1e-3)


class _Recorded(TorchDispatchMode):
    """The zoo's operators that run inside the block, each with the arguments of its first call."""

    def __init__(self):
        super().__init__()
        self.calls: dict = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "zoo":
            copies = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
            self.calls.setdefault(func, copies)
        return func(*args, **(kwargs or {}))


def _double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}


def _squares(tensors: dict[str, Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors.values()]).sum()


def _loss(case: Case, impl: str, inputs: dict[str, Tensor]):
    """The sum of squares of the outputs as a function of the floating inputs, and these."""
    leaves = {name: t for name, t in inputs.items() if t.is_floating_point()}

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        found = outputs(case.call, impl, inputs | tensors)
        return torch.stack([o.square().sum() for o in found if o.is_floating_point()]).sum()

    return loss, leaves


def _leaf(tensor: Tensor, differentiable: bool) -> Tensor:
    return tensor.requires_grad_(differentiable and tensor.is_floating_point())


def _strided(tensor: Tensor) -> Tensor:
    """The same values, every second element of a larger tensor along its last axis."""
    if not tensor.is_floating_point() or tensor.dim() == 0:
        return tensor
    larger = torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1).flatten(-2)
    return larger[..., ::2]

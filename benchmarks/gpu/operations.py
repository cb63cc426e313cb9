"""Operations on a GPU: right against float64, fast against the roofline and the peers, and their block sizes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.benchmarks.gpu.timing import seconds
from zoo.benchmarks.measures import MEASURES, cost, forward, on_device
from zoo.benchmarks.subjects import SUBJECTS, Subject
from zoo.kernels import available_implementations
from zoo.kernels.triton_support import measured, requested, target

TESTS = Path(__file__).resolve().parents[2] / "tests"
RIGHT = "right"
REFERENCE, MAMBA_SSM, TRITON = "reference", "mamba_ssm", "triton"
FASTER = 0.97  # a block size must save 3 % to be taken
LARGEST = {"num_warps": 16, "warps": 16, "num_stages": 6, "stages": 6}
LARGEST_TILE = 1024
Found = Iterator[dict[str, Any]]


def cases() -> dict[str, Any]:
    """The cases of `tests/cases` by name; they come with a checkout, not with a wheel."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    from cases import all_cases  # pyright: ignore[reportMissingImports] (of the tests)

    return {case.name: case for case in all_cases()}


def right(name: str, device: str, lengths: tuple[int, ...], dtypes: tuple[str, ...], without: str = "") -> Found:
    """Outputs and gradients of every implementation of a case, by the rule of the tests (`cases.accuracy`).

    The longest length is compared with a fast torch implementation in float64: the reference would take minutes.
    Triton's interpreter is left out (``without``): the tests have it, and it takes seconds a case.
    """
    case = cases()[name]
    from cases.accuracy import assert_accurate  # pyright: ignore[reportMissingImports]

    impls = [i for i in available_implementations(case.operation, device) if i not in (REFERENCE, MAMBA_SSM, without)]
    torches = [i for i in impls if i not in (TRITON, "native")]
    for dtype in dtypes:
        for length in lengths:
            inputs = {n: t.to(device) for n, t in case.inputs(2, length, getattr(torch, dtype)).items()}
            long = length > 1000 and bool(torches)
            with _Noted() as wrong:
                assert_accurate(
                    case.call, inputs, *impls, variations=1 if long else 2, against=torches[0] if long else REFERENCE
                )
            yield {f"{dtype}, T {length}": wrong.error or RIGHT}


def fast(name: str, device: str, lengths: tuple[int, ...], budget: float) -> Found:
    """Seconds of every side, and the bytes and FLOPs of the roofline: a record for each length and measure."""
    subject = _subject(name)
    ours, *others = available_implementations(subject.operation, device)
    for length in lengths:
        inputs = on_device(subject, length, device)
        calls: dict[str, Callable[..., Any]] = {"zoo": partial(subject.call, impl=ours)}
        calls |= subject.cuda_peers if device == "cuda" else {}
        calls |= {impl: partial(subject.call, impl=impl) for impl in others if impl not in (REFERENCE, TRITON)}
        calls |= subject.peers if length == min(lengths) else {}
        for measure, run in MEASURES.items():
            record: dict[str, Any] = {}
            for side, call in calls.items():
                with _Noted() as failed:
                    record[side] = seconds(partial(run, call, inputs), device, budget)
                if failed.error:
                    record[side] = failed.error
            record["bytes"], record["flops"] = cost(subject, inputs, measure)
            yield {f"T {length}, {measure}": record | {"implementation": ours}}
    if subject.decodes:
        inputs = on_device(subject, 1, device)
        inputs["initial_state"] = subject.call(**inputs).final_state
        yield {"decode": {"zoo": seconds(partial(forward, subject.call, inputs), device, budget)}}


def tuned(name: str, device: str, length: int, budget: float) -> Found:
    """Better block sizes of the kernels that one operation launches, one size after another, halved and doubled.

    A size that does not compile, does not fit or changes the result beyond rounding is not taken.
    """
    subject = _subject(name)
    inputs = on_device(subject, length, device)
    call = partial(subject.call, impl=TRITON)
    run = partial(MEASURES["training"], call, inputs)
    requested.clear()
    expected = [forward(call, inputs), run()]
    kernels = measured().setdefault(target(torch.device(device)), {})
    for (operation, shape_class), default in list(requested.items()):
        table = kernels.setdefault(operation, {})
        sizes = default | table.get(shape_class, {})
        before = best = seconds(run, device, budget)
        for size, candidate in [(name, value) for name in sizes for value in _candidates(name, sizes[name])]:
            table[shape_class] = sizes | {size: candidate}
            taken = torch.inf
            with _Noted():
                if _close([forward(call, inputs), run()], expected):
                    taken = seconds(run, device, budget)
            if taken < best * FASTER:
                sizes, best = table[shape_class], taken
        table[shape_class] = sizes  # the next kernels are tuned beside it
        yield {f"{operation} {shape_class}": {"default": default, "sizes": sizes, "before": before, "after": best}}


def _candidates(size: str, value: int) -> list[int]:
    """Half and twice of a tile, one stage more or less."""
    near = (value + 1, value - 1) if "stages" in size else (value * 2, value // 2)
    return [candidate for candidate in near if 1 <= candidate <= LARGEST.get(size, LARGEST_TILE)]


def _subject(name: str) -> Subject:
    return next(subject for subject in SUBJECTS if subject.name == name)


def _close(found: list[Tensor], right: list[Tensor]) -> bool:
    return all(
        bool((a.double() - b.double()).abs().max() <= 0.02 * b.double().abs().max())
        for a, b in zip(found, right, strict=True)
    )


class _Noted:
    """Keeps the first line of an error of the block; what breaks the device is raised, the process is lost then."""

    error: str | None = None

    def __enter__(self) -> _Noted:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception) or "CUDA error" in str(error):
            return False
        self.error = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        return True

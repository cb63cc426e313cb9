"""Every Triton kernel compiles for a GPU, on a machine without one: the interpreter accepts more than the compiler."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from zoo.kernels import dispatch


class NoDevice:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=0: 0)
    get_active_torch_device = staticmethod(lambda: torch.device("cpu"))


def compile_only(self, *arguments, grid, warmup, run=JITFunction.run, **options):
    compiled.add(self.fn.__name__)
    return run(self, *arguments, grid=grid, warmup=True, **options)


driver.set_active(NoDevice())
JITFunction.run, compiled, seen = compile_only, set(), set()

from cases import all_cases

for case in all_cases():
    implementation = dispatch._operations[case.operation].implementations.get("triton")
    if implementation is None:
        continue
    object.__setattr__(implementation, "obstacle", lambda device: None)
    first = case.operation not in seen
    seen.add(case.operation)
    for dtype in (torch.float32, torch.bfloat16) if first else (torch.bfloat16,):
        compiled.clear()
        inputs = {{n: t.requires_grad_(t.is_floating_point()) for n, t in case.inputs(1, 40, dtype).items()}}
        found = case.call(impl="triton", **inputs)
        found = [o for o in (found if isinstance(found, tuple) else (found,)) if o.is_floating_point()]
        torch.autograd.grad(sum(o.float().sum() for o in found), [t for t in inputs.values() if t.requires_grad])
        print(case.name, dtype, *sorted(compiled))
        assert compiled
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_every_kernel_compiles_for_sm_90(root: Path, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    program = PROGRAM.format(tests=str(root / "tests"))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"

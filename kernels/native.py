"""C kernels for the CPU: compiled once with the system's C compiler, cached on disk, called through ctypes.

A kernel is one ``.c`` file that needs no headers beyond the C library's and its neighbours', so that it compiles in a
second or two, against ten or more for a C++ extension of torch. Where there is no compiler the operations use their
torch implementation.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from zoo.kernels.dispatch import as_dtype
from zoo.kernels.stand_in import on_cpu

CACHE_VARIABLE = "ZOO_CACHE"
_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC", "-shared"]
_TIMEOUT = 300  # seconds; the longest takes 7 on an idle core
_one_at_a_time = threading.Lock()


def cache_folder() -> Path:
    """Folder of the compiled kernels: ``$ZOO_CACHE``, else ``$XDG_CACHE_HOME/zoo``, else ``~/.cache/zoo``."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"


@functools.cache
def load(source: Path) -> ctypes.CDLL | str:
    """The compiled library of ``source``, or a sentence that says why there is none.

    ``$CC`` may hold arguments (``"ccache gcc"``), as in a shell. Warns, once a kernel and process, where there is none.
    """
    with _one_at_a_time:
        return _load(source)


def _load(source: Path) -> ctypes.CDLL | str:
    given = os.environ.get("CC", "").strip() or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if given is None or sys.platform == "win32":
        return "no C compiler (cc, gcc, clang or $CC) was found"
    try:
        return _build(shlex.split(given), source)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        detail = (told.decode(errors="replace") if isinstance(told, bytes) else told).strip().splitlines()
        reason = f"{source.name} did not compile with {given}: {detail[-1] if detail else error}"
        warnings.warn(f"{reason}; the torch implementation is used instead", RuntimeWarning, stacklevel=3)
        return reason


def obstacle(source: Path, device: torch.device) -> str | None:
    """Why the kernel cannot run on ``device``, or None. Compiles the kernel on the first call for the CPU."""
    if not on_cpu(device):
        return "it is a CPU kernel"
    library = load(source)
    return library if isinstance(library, str) else None


def call(source: Path, function: str, *arguments: Tensor | int | None) -> None:
    """Call ``function_f32`` or ``function_f64``; tensors go as pointers (None: NULL), integers as int64. Tensors on the
    meta device have nothing to compute."""
    if any(isinstance(a, Tensor) and a.is_meta for a in arguments):
        return
    wide = any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in arguments)
    found = _function(source, f"{function}_f64" if wide else f"{function}_f32", len(arguments))
    found(*[a.data_ptr() if isinstance(a, Tensor) else a or 0 for a in arguments])


@functools.cache
def _function(source: Path, name: str, count: int) -> Callable[..., None]:
    """A function of so many arguments, all of them as 64 bits, as pointers are."""
    library = load(source)
    if isinstance(library, str):
        raise RuntimeError(library)
    found = getattr(library, name)
    found.argtypes, found.restype = [ctypes.c_int64] * count, None
    return found


def in_rows(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors of one dtype, contiguous or with contiguous steps that lie ``stride(1)`` apart.

    So the parts of a projection's output (B, T, ...) split along its last axis are read where they are, uncopied.
    """
    return tuple(t if t is None or _steps_apart(t) else t.contiguous() for t in as_dtype(dtype, *tensors))


def _steps_apart(tensor: Tensor) -> bool:
    shape, strides = tensor.shape, tensor.stride()
    return (
        tensor.dim() > 2 and tensor.numel() > 0 and strides[0] == shape[1] * strides[1] and tensor[0, 0].is_contiguous()
    )


def _build(compiler: list[str], source: Path) -> ctypes.CDLL:
    """From the cache, made first where it is not there; for this process alone where the cache cannot be used."""
    made_of = [_code(source), *(text.encode() for text in (*_FLAGS, shlex.join(compiler), _processor()))]
    key = hashlib.sha256(b"\0".join(made_of)).hexdigest()
    name = f"{source.stem}-{key[:16]}"
    try:
        return _cached(cache_folder() / "native", name, compiler, source)
    except (OSError, RuntimeError):  # read-only, no programs allowed, no home
        with tempfile.TemporaryDirectory() as folder:
            return _cached(Path(folder), name, compiler, source)


def _cached(folder: Path, name: str, compiler: list[str], source: Path) -> ctypes.CDLL:
    """A library's file is named by its own hash: one whose bytes have changed, which may kill the process, is replaced.

    Files only ever come complete and by one renaming, so that processes need not wait for one another.
    """
    damaged = []
    for library in folder.glob(f"{name}-*.so"):
        if library.stem == f"{name}-{_digest(library)}":
            return ctypes.CDLL(str(library))
        damaged.append(library)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as workplace:
        built = Path(workplace) / f"{name}.so"
        try:
            _run(compiler, "-fopenmp", source, built)
        except subprocess.CalledProcessError:  # a compiler without OpenMP (Apple's clang): one thread
            _run(compiler, "-Wno-unknown-pragmas", source, built)
        for library in damaged:
            library.unlink(missing_ok=True)
        library = folder / f"{name}-{_digest(built)}.so"
        os.replace(built, library)
    return ctypes.CDLL(str(library))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def _code(source: Path) -> bytes:
    """The source and every file it includes by a quoted name, however deep: what the library is made of."""
    code = source.read_bytes()
    included = re.findall(rb'^#include "(.+)"', code, re.MULTILINE)
    return b"\0".join([code, *(_code(source.parent / os.fsdecode(name)) for name in included)])


def _run(compiler: list[str], flag: str, source: Path, target: Path) -> None:
    command = [*compiler, *_FLAGS, flag, "-o", str(target), str(source), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)


def _processor() -> str:
    """What -march=native depends on, so that machines sharing a home folder do not share a library."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")

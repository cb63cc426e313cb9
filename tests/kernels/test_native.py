"""The cache of compiled kernels: what damages, hides or races for it, and compilers of every kind."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from zoo.kernels import available_implementations, native
from zoo.kernels.selective_scan.native import SOURCE

CPU = torch.device("cpu")
PROGRAM = "int answer(void) { return %d; }"


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A program of one line, compiled into a cache of its own."""
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path / "cache"))
    file = tmp_path / "small.c"
    file.write_text(PROGRAM % 42)
    return file


def answer(source: Path) -> int:
    """What a process that starts now gets."""
    native.load.cache_clear()
    library = native.load(source)
    assert isinstance(library, ctypes.CDLL), library
    return library.answer()


def libraries(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "native").iterdir())


def test_compiled_kernels_are_cached_on_disk(tmp_path):
    """A fresh process compiles into an empty cache; the next one uses the file without a compiler."""
    program = (
        "import torch, zoo.kernels as k; from zoo.kernels.selective_scan import native;"
        "print(native.obstacle(torch.device('cpu')))"
    )
    environment = os.environ | {native.CACHE_VARIABLE: str(tmp_path), "PYTHONWARNINGS": "error"}
    first = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert first.stdout.strip() == "None", first.stderr
    (library,) = (tmp_path / "native").glob("*.so")
    written = library.stat().st_mtime_ns
    second = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert second.stdout.strip() == "None" and library.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", [lambda b: b[:3000], lambda b: b"", lambda b: b[:2000] + b"\xff" * 64 + b[2064:]])
def test_a_damaged_library_is_made_again(source, tmp_path, damage):
    assert answer(source) == 42
    (library,) = libraries(tmp_path)
    sound = library.read_bytes()
    library.unlink()  # not truncated in place: this process runs it
    library.write_bytes(damage(sound))
    assert answer(source) == 42
    (library,) = libraries(tmp_path)
    assert len(library.read_bytes()) == len(sound)


def test_a_changed_source_is_compiled_again(source):
    assert answer(source) == 42
    source.write_text(PROGRAM % 43)
    assert answer(source) == 43


def test_a_cache_that_cannot_be_written(source, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert answer(source) == 42


def test_the_compiler_is_read_as_a_shell_does(source, monkeypatch, tmp_path):
    wrapper = tmp_path / "a wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", f"'{wrapper}' {shutil.which('cc') or shutil.which('gcc')}")
    assert answer(source) == 42


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false", "sh -c 'exit 3'", "'unclosed"])
def test_a_compiler_that_fails(source, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    native.load.cache_clear()
    with pytest.warns(RuntimeWarning, match="small.c did not compile with") as warned:
        assert "did not compile" in str(native.obstacle(source, CPU))
        assert "did not compile" in str(native.obstacle(source, CPU))
    assert len(warned) == 1


def test_builds_at_the_same_time(source, tmp_path):
    """Each in a cache that was empty when it began."""
    with ThreadPoolExecutor(3) as pool:
        built = pool.map(lambda _: native._build(["cc"], source), range(3))
    assert [library.answer() for library in built] == [42] * 3
    assert len(libraries(tmp_path)) == 1


def test_without_a_compiler_the_torch_implementation_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    native.load.cache_clear()
    try:
        assert "no C compiler" in str(native.obstacle(SOURCE, CPU))
        assert available_implementations("selective_scan") == ["chunked", "reference"]
    finally:
        native.load.cache_clear()


def test_a_kernel_that_does_not_compile_warns_and_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setenv(native.CACHE_VARIABLE, str(tmp_path))
    broken = tmp_path / "broken.c"
    broken.write_text("int f( {")
    with pytest.warns(RuntimeWarning, match="broken.c did not compile"):
        assert "did not compile" in str(native.obstacle(broken, CPU))

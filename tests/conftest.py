"""What every test starts from: a fixed seed, no network, no leftover global state."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)  # the workers share the cores
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: its kernels run on the CPU, slowly
LONG = ("train/test_distributed.py", "train/test_crash.py", "tests/test_gpu_script.py", "tests/test_package.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that no worker waits for another at the end. ``cuda`` tests are skipped without a GPU,
    where Triton's interpreter runs the accuracy of each operation once, and each other contract once: the rest of its
    runs are ``slow``."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONG))
    if torch.cuda.is_available():
        return
    contracts = set()
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if given.get("impl") == "triton":
            contract = item.originalname, given["case"].operation if "case" in given and "accura" in item.name else ""
            if "case" not in given or contract in contracts:
                item.add_marker(pytest.mark.slow)
            contracts.add(contract)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder; names that are registered in it, its modules `my_*` and its path are forgotten afterwards."""
    from zoo.registry import entries

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = entries()  # with all families, which stay
    before = set(known)
    yield tmp_path
    for name in set(known) - before:
        del known[name]
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for a test, alone or in the whole suite."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unchanged_torch() -> Iterator[None]:
    """A test that leaves another default dtype or gradient mode behind fails itself, not its successor."""
    before = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    after = torch.get_default_dtype(), torch.is_grad_enabled()
    torch.set_default_dtype(before[0])
    torch.set_grad_enabled(before[1])
    assert after == before, f"the test left torch's (default dtype, grad mode) at {after}, it was {before}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine answers: connecting anywhere else is an error (gloo's own sockets are not Python's)."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else address
        if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests must not use the network; something connected to {address!r}")
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", local_only)

"""The layout: imports run one way, the import is light, and the library keeps the house's plainest rules."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import zoo.layers

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("kernels", "layers", "train", "checkpoints", "benchmarks")
# room -> the rooms it may import; "zoo" is everything in zoo/ but the links
MAY_IMPORT = {
    "kernels": {"kernels"},
    "layers": {"layers", "kernels"},
    "checkpoints": {"checkpoints"},
    "zoo": {"zoo", "layers", "kernels", "checkpoints"},
    "train": {"train", "zoo", "layers", "kernels", "checkpoints"},
    "benchmarks": {"benchmarks", "train", "zoo", "layers", "kernels", "checkpoints"},
}
COMMAND_LINE = "zoo.cli."  # starts what is in train and benchmarks, and imports it when asked to
HEAVY = ("triton", "timm", "lightning", "transformers", "torchvision", "matplotlib", "sklearn", "tokenizers")


def modules() -> dict[str, Path]:
    """Dotted name -> file, each module once: the links stand for the folders at the top level."""
    files = [p for p in (ROOT / "zoo").rglob("*.py") if p.relative_to(ROOT / "zoo").parts[0] not in LINKED]
    files += [p for room in LINKED for p in (ROOT / room).rglob("*.py")]
    named = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "zoo" else ("zoo", *parts)
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


MODULES = modules()


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LINKED else "zoo"


def imported(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything from this project that a module imports, at any depth of its code."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]) if base else ".".join(above)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names)


def test_the_walk_sees_the_library() -> None:
    assert {room(m) for m in MODULES} == set(MAY_IMPORT)
    assert len(set(MODULES.values())) == len(MODULES) > 30


def test_links_are_relative_and_lead_to_the_folders() -> None:
    for name in LINKED:
        link = ROOT / "zoo" / name
        assert link.is_symlink() and str(link.readlink()) == f"../{name}"


def test_imports_run_one_way() -> None:
    wrong = []
    for module, path in sorted(MODULES.items()):
        allowed = MAY_IMPORT[room(module)] | ({"train", "benchmarks"} if module.startswith(COMMAND_LINE) else set())
        for line, name in imported(module, path):
            top = name.split(".")[0]
            if top in LINKED:
                wrong.append(f"{path}:{line} imports {name}: write zoo.{name}")
            elif top == "zoo" and room(name) not in allowed:
                wrong.append(f"{path}:{line} imports {name}: {room(module)} may import only {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)


def test_every_code_folder_is_a_package() -> None:
    folders = {path.parent for path in MODULES.values()}
    missing = [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()]
    assert not missing, f"folders with code but no __init__.py: {missing}"


def test_import_is_light_and_silent() -> None:
    """A fresh process: no heavy package, no socket, no output, no changed global."""
    code = f"""
import socket, sys
class NoSocket(socket.socket):
    def __init__(self, *args, **kwargs):
        raise AssertionError("import zoo opened a socket")
import torch
socket.socket = NoSocket
before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
          torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())
loaded = set(sys.modules)
import zoo
from zoo import *
after = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
         torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision())
assert before == after, (before, after)
heavy = sorted(m for m in set(sys.modules) if m.split(".")[0] in {HEAVY!r})
assert not heavy, f"import zoo loads {{heavy[:5]}}"
assert "jinja2" in loaded or "jinja2" not in sys.modules, "import zoo loads jinja2"
assert "zoo.train" not in sys.modules, "import zoo loads zoo.train"
assert len(zoo.list_models()) > 0
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""


def test_every_mixer_is_exported_by_the_layers() -> None:
    """From where users take them; what only others are derived from stays below."""
    for module in MODULES:
        if module.startswith("zoo.layers."):
            importlib.import_module(module)
    kinds = [zoo.layers.Mixer]
    for kind in kinds:
        kinds += [found for found in kind.__subclasses__() if found.__module__.startswith("zoo.layers.")]
    concrete = {kind.__name__ for kind in kinds if not kind.__subclasses__()}
    assert concrete <= set(zoo.layers.__all__), sorted(concrete - set(zoo.layers.__all__))

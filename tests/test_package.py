"""The distribution: what pip would install holds every module once, under zoo/, with its data, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOTS = ("zoo", "kernels", "layers", "train", "checkpoints", "benchmarks")
DATA = {
    "train": {".yaml"},
    "kernels": {".c", ".cpp", ".h", ".json"},
    "checkpoints": {".json", ".safetensors"},
    "zoo": {".typed"},
    "benchmarks": {".html", ".css", ".js", ".safetensors"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a distribution is made from."""
    root, source = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    for name in ROOTS:
        shutil.copytree(root / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def without_links(source: Path, target: Path, kind: str) -> Path:
    """The copy as a clone with core.symlinks=false has it (text files), or an archive whose links were dropped."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for link in [path for path in (target / "zoo").iterdir() if path.is_symlink()]:
        place = str(link.readlink())
        link.unlink()
        if kind == "text":
            link.write_text(place)
    return target


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheels of the tree, of the sdist and of trees without links, built offline."""
    out = tmp_path_factory.mktemp("dist")
    build_backend(source, "build_sdist", out)
    build_backend(source, "build_wheel", out / "tree")
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out / "unpacked", filter="data")
    build_backend(next((out / "unpacked").iterdir()), "build_wheel", out / "sdist")
    for kind in ("text", "nothing"):
        tree = without_links(source, out / f"tree-{kind}", kind)
        build_backend(tree, "build_wheel", out / kind)
    build_backend(out / "tree-text", "build_sdist", out / "sdist-text")
    return out


def build_backend(source: Path, hook: str, out: Path) -> None:
    """One PEP 517 hook of setuptools, in its own process as pip runs it."""
    done = run_backend(source, hook, out)
    assert done.returncode == 0, done.stderr


def run_backend(source: Path, hook: str, out: Path) -> subprocess.CompletedProcess[str]:
    out.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"
    return subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=240)


def members(folder: Path) -> set[str]:
    """Names in the sdist of a folder, without the folder around them."""
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        found = archive.getmembers()
    assert not [m.name for m in found if m.issym() or m.islnk()]
    names = [m.name.partition("/")[2] for m in found if m.isfile()]
    assert len(names) == len(set(names))
    return set(names)


def wheel(folder: Path) -> zipfile.ZipFile:
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def expected(root: Path) -> set[str]:
    """Every module and data file of the tree, as the wheel should name it."""
    names = set()
    for room in ROOTS:
        for path in (root / room).rglob("*"):
            parts = path.relative_to(root / room).parts
            linked = room == "zoo" and parts[0] in ROOTS
            if path.is_file() and not linked and path.suffix in {".py"} | DATA.get(room, set()):
                names.add("/".join(("zoo", *parts) if room == "zoo" else ("zoo", room, *parts)))
    return names


@pytest.mark.parametrize("origin", ["tree", "sdist", "text", "nothing"])
def test_wheel_holds_every_module_and_data_file_once(built: Path, root: Path, origin: str) -> None:
    names = [n for n in wheel(built / origin).namelist() if ".dist-info/" not in n]
    assert len(names) == len(set(names))
    assert set(names) == expected(root)
    assert {"zoo/__init__.py", "zoo/train/__init__.py", "zoo/kernels/ssd/__init__.py"} <= set(names)
    assert any(n.startswith("zoo/train/recipes/") for n in names)


@pytest.mark.parametrize("origin", ["tree", "sdist"])
def test_wheel_holds_no_path_of_this_machine(built: Path, root: Path, origin: str) -> None:
    archive = wheel(built / origin)
    folders = (p for p in (root, Path.home(), built) if len(p.parts) > 1)
    private = re.compile("|".join(re.escape(f"{p}/") for p in folders).encode())
    leaks = [name for name in archive.namelist() if private.search(archive.read(name))]
    assert not leaks, f"absolute paths of this machine in {leaks}"


def test_metadata(built: Path) -> None:
    archive = wheel(built / "tree")
    files = {name.split("/")[-1]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    meta = message_from_string(files["METADATA"])
    assert meta["Name"] == "efficient-zoo"
    assert meta["License-Expression"] == "Apache-2.0" and "Apache License" in files["LICENSE"]
    assert meta["Requires-Python"] == ">=3.10"
    extras = {"dev", "cuda", "text", "export", "gguf", "peft", "eval", "worlds", "atari"}
    assert set(meta.get_all("Provides-Extra", [])) == extras
    core = [r for r in meta.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert "torch>=2.11" in core and "lightning>=2.6.4" in core
    assert not [r for r in core if r.startswith(("transformers", "mamba", "pytest", "datasets"))]
    assert files["entry_points.txt"].split() == ["[console_scripts]", "zoo", "=", "zoo.cli:main"]


def test_sdist_holds_every_file_once(built: Path, root: Path) -> None:
    """At the top level, where the repository has them; with or without links the same."""
    code = {name for name in members(built) if name.split("/")[0] in ROOTS}
    inside = {name.removeprefix("zoo/") if name.split("/")[1] in ROOTS else name for name in expected(root)}
    assert code == inside
    assert members(built) == members(built / "sdist-text")


def test_a_wheel_from_a_tree_without_links_imports(built: Path, tmp_path: Path) -> None:
    wheel(built / "text").extractall(tmp_path)
    code = """
import zoo
assert zoo.__file__.startswith({place!r}), zoo.__file__
import zoo.benchmarks, zoo.cli
model = zoo.create_model("mamba2_nano", pretrained=True)
assert zoo.cli.recipe_path("digits_vim_nano").is_file()
"""
    place = str(tmp_path)
    command = [sys.executable, "-c", code.format(place=place)]
    environment = {**os.environ, "PYTHONPATH": place}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["text", "nothing"])
def test_an_editable_install_without_links_stops_with_a_sentence(built: Path, kind: str, tmp_path: Path) -> None:
    done = run_backend(built / f"tree-{kind}", "build_editable", tmp_path)
    assert done.returncode != 0 and not list(tmp_path.iterdir())
    assert done.stderr.splitlines()[-1].startswith("error: an editable install needs the symbolic links zoo/kernels, ")
    assert "Traceback" not in done.stderr


def test_an_editable_install_leads_to_the_checkout(source: Path, built: Path, tmp_path: Path) -> None:
    build_backend(source, "build_editable", tmp_path)
    archive = wheel(tmp_path)
    (finder,) = [name for name in archive.namelist() if name.endswith("_finder.py")]
    assert f"= {{'zoo': {str(source / 'zoo')!r}}}\n" in archive.read(finder).decode()


def test_constraints_pin_versions_only(root: Path) -> None:
    """No path, no URL, no local build tag (+cpu) that one index alone could answer."""
    lines = [ln for ln in (root / "constraints.txt").read_text().splitlines() if ln and not ln.startswith("#")]
    pin = re.compile(r'[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*; python_version >= "3\.\d+"')
    assert [ln for ln in lines if not pin.fullmatch(ln)] == []
    assert {"torch", "torchvision", "timm", "lightning"} <= {ln.split("==")[0] for ln in lines}

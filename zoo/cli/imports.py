"""The user's own models: a file or a module that calls ``zoo.register_model``, imported by name."""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def import_models(source: str, folder: Path = Path()) -> str:
    """Import ``my_models.py`` or ``my_package.my_models``, once; errors inside it are the user's to see in full.

    A file finds the modules beside it, as if Python had been started with it.

    Args:
        source: a file, from the working folder or else from ``folder``, or a module's dotted name.
        folder: of the recipe that names it.

    Returns:
        The source, a file by its absolute path.

    Raises:
        FileNotFoundError: there is no such file. ValueError: there is no such module.
    """
    if not source.endswith(".py"):
        if not all(part.isidentifier() for part in source.split(".")):
            raise ValueError(f"{source!r} is no file ending in .py and no module's name: nothing to import")
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            import_module(source)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{source}.".startswith(f"{error.name}."):
                raise
            raise ValueError(f"there is no module {source} to import (a file ends in .py)") from error
        return source
    path = next((path.resolve() for path in (Path(source), folder / source) if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"there is no file {source} to import")
    _run(path)
    return str(path)


def _run(path: Path) -> None:
    known = {getattr(module, "__file__", None): name for name, module in list(sys.modules.items())}
    if str(path) in known:
        return
    name = path.stem
    if name in sys.modules:  # another module's name
        name = f"{name}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file has both
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise

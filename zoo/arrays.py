"""Arrays from files of numpy, and errors that name the file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def read_array(path: str | Path) -> np.ndarray[Any, Any]:
    """The numbers of a ``.npy`` file.

    Raises:
        ValueError: for a file that is none, is cut short, or holds anything but numbers.
        FileNotFoundError: for a file that is not there.
    """
    found = _loaded(path, ".npy", "numpy.save(file, array)")
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path} must hold one array, as numpy.save writes it, got several: {', '.join(found)}")
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold numbers, got {found.dtype}")
    return found


def read_arrays(path: str | Path, names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of these names of a ``.npz`` file.

    Raises:
        ValueError: for a file that is none, is cut short, or does not have them.
        FileNotFoundError: for a file that is not there.
    """
    given = ", ".join(f"{name}=..." for name in names)
    found = _loaded(path, ".npz", f"numpy.savez(file, {given})")
    if isinstance(found, np.ndarray) or not set(names) <= set(found):
        raise ValueError(f"{path} must hold the arrays {' and '.join(names)}: numpy.savez(file, {given})")
    return {name: found[name] for name in names}


def _loaded(path: str | Path, suffix: str, written: str) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no {suffix} file of numbers, as {written} writes it, or it is cut short"
        ) from error

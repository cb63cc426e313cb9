"""Where and when results were measured, and of which code."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
CODE = ("--", ".", ":!benchmarks/results")  # what a change of makes results those of no commit
PACKAGES = ("torch", "transformers", "timm", "lightning", "mamba-ssm", "triton", "xllamacpp")


def date() -> str:
    """Now, to the minute."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def machine() -> dict[str, object]:
    """What a reader needs to judge the figures: hardware, threads, versions, and commit and date of when a command of
    this process first asked."""
    return {**_machine(), "threads": torch.get_num_threads()}


@cache
def _machine() -> dict[str, object]:
    return {
        "date": date(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", *CODE) else ""),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": 0,  # may be set later
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()

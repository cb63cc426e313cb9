"""Steps run one after another in processes of their own, each within its time; what they find is kept as it comes.

A step that fails, takes too long or brings its process down is recorded as such, and the next one goes on in a fresh
process. A step that is done is not run again, so a run that was cut short is continued by starting it anew.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[1]
DONE, FAILED, OVERRAN, NOT_REACHED = "ok", "failed", "overran", "not reached"


@dataclass(frozen=True)
class Step:
    """A function that yields what it finds, as parts of one dict.

    Args:
        run: of a module, so that another process finds it; called with `arguments`.
        seconds: after which it is ended.
        alone: nothing else may run beside it, because it measures time.
    """

    name: str
    run: Callable[..., Iterable[dict[str, Any]] | None]
    arguments: tuple = ()
    seconds: float = 60.0
    alone: bool = True


class Keeper(Protocol):
    """Where what steps find is kept."""

    def read(self, step: Step) -> dict[str, Any]:
        """What is known of a step, with its "status" and what was "found"; without them where that is nothing."""
        ...

    def write(self, step: Step, status: str, seconds: float, found: dict[str, Any], error: str | None = None) -> None:
        """Keep what a step has found so far, and how it ended, or "running"."""
        ...


class Results:
    """A file a step, `FOLDER/NAME.json`, each written in full and then put in place.

    Args:
        identity: what results must have been found with to count (device, versions); others are found anew.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, step: Step) -> dict[str, Any]:
        """What is known of a step; without a status where that is nothing."""
        try:
            known = json.loads(self._path(step).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return known if known.get("identity") == self.identity else {}

    def forget(self, step: Step) -> None:
        """Let a step be run again."""
        self._path(step).unlink(missing_ok=True)

    def write(self, step: Step, status: str, seconds: float, found: dict[str, Any], error: str | None = None) -> None:
        """Keep what a step found, and how it ended."""
        record = {"name": step.name, "status": status, "seconds": round(seconds, 2), "identity": self.identity}
        write_json(self._path(step), record | {"found": found} | ({"error": error} if error else {}))

    def _path(self, step: Step) -> Path:
        return self.folder / f"{''.join(c if c.isalnum() else '_' for c in step.name)}.json"


def write_json(path: Path, content: Any) -> None:
    """The file appears whole or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


def sources(*rooms: str) -> str:
    """A digest of the Python and C files in these folders: results of other code are found anew."""
    digest = hashlib.sha256()
    for file in sorted(f for room in rooms for f in (ROOT / room).rglob("*") if f.suffix in (".py", ".c", ".h")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def run_steps(
    steps: Sequence[Step], results: Keeper, *, seconds: float, processes: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run what is not done yet, in order, and return the record of every step.

    Args:
        seconds: for all of it; no step starts afterwards, and one that runs is ended then.
        processes: how many steps that are not `alone` run at once.
    """
    end = time.monotonic() + seconds
    waiting = [step for step in steps if results.read(step).get("status") != DONE]
    idle: list[_Worker] = []
    busy: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and _may_start(waiting[0], busy, processes) and time.monotonic() < end:
                worker = idle.pop() if idle else _Worker()
                worker.start(waiting.pop(0), end)
                busy.append(worker)
            if not busy:  # out of time
                break
            wait([worker.connection for worker in busy], timeout=max(0.0, min(w.end for w in busy) - time.monotonic()))
            for worker in list(busy):
                if worker.listen(results, say):
                    busy.remove(worker)
                    if worker.alive:
                        idle.append(worker)
    finally:
        for worker in busy:
            worker.stop()
        for worker in idle:
            worker.stop(patience=10.0)
    for step in waiting:
        results.write(step, NOT_REACHED, 0.0, results.read(step).get("found", {}))
    return [results.read(step) for step in steps]


def _may_start(step: Step, busy: Sequence[_Worker], processes: int) -> bool:
    return not busy or (not step.alone and len(busy) < processes and not any(w.step.alone for w in busy))


@dataclass
class _Worker:
    """A process that runs steps, and what the one at hand has found so far."""

    alive: bool = True
    step: Step = field(init=False)
    end: float = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,))  # which may start others
        self.process.start()
        theirs.close()

    def start(self, step: Step, end: float) -> None:
        self.step, self.found, self.started = step, {}, time.monotonic()
        self.end = min(self.started + step.seconds, end)
        self.connection.send(step)

    def listen(self, results: Keeper, say: Callable[[str], None]) -> bool:
        """Take what has come and write it down; whether the step is over."""
        status, error = None, None
        try:
            while status is None and self.connection.poll():
                kind, content = self.connection.recv()
                if kind == "found":
                    self.found |= content
                else:
                    status, error = kind, content
        except EOFError:
            self.process.join()
            status, error = FAILED, f"the process ended with {self.process.exitcode}"
            self.alive = False
        if status is None and time.monotonic() >= self.end:
            status, error = OVERRAN, f"ended after {time.monotonic() - self.started:.0f} s"
        taken = time.monotonic() - self.started
        results.write(self.step, status or "running", taken, self.found, error)
        if status is None:
            return False
        if status != DONE:  # its GPU context may be broken
            self.stop()
        say(f"{self.step.name}: {status}, {taken:.1f} s" + (f": {error.splitlines()[-1]}" if error else ""))
        return True

    def stop(self, patience: float = 0.0) -> None:
        """At the end of its connection an idle process ends by itself; one that does not within so many seconds is
        killed."""
        self.alive = False
        self.connection.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()


class _Reported:
    """Sends an error of the block instead of raising it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self.connection.send((FAILED, "".join(traceback.format_exception(error))[-4000:].strip()))
        return True


def _serve(connection: Connection) -> None:
    while True:
        try:
            step = connection.recv()
        except EOFError:
            return
        with _Reported(connection):
            for found in step.run(*step.arguments) or ():
                connection.send(("found", found))
            connection.send((DONE, None))

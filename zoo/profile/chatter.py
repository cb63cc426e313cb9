"""What torch's profiler writes to the standard error of the process, which is not for the user."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

# kineto's lines, and the allocator's warning of blocks that are older than the profile
CHATTER = re.compile(rb"^USDT:|^(INFO|WARNING|ERROR|STAGE):? ?\d{4}-\d\d-\d\d.*\.cpp:\d+|^\[W[^]]*CPUAllocator\.cpp")
_lock = Lock()  # the file behind the number 2 is one for all threads


@contextmanager
def without_chatter() -> Iterator[None]:
    """A block in which the lines of torch's profiler are left out of standard error; others are written after it."""
    with _lock, tempfile.TemporaryFile() as held:
        try:
            before = os.dup(2)
        except OSError:  # there is none
            yield
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            if kept := b"".join(line for line in held if not CHATTER.search(line)):
                os.write(2, kept)

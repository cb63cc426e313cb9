"""``python -m fuzz``: draws until the time is over, prints what is wrong, and exits with 1 where anything was."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from fuzz.check import check
from fuzz.draws import DRAWS
from zoo.kernels import available_implementations


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; each draw takes the next one")
    parser.add_argument("--operation", choices=sorted(DRAWS), action="append", help="only this one; may be repeated")
    parser.add_argument("--implementation", help="only this one, such as triton (under TRITON_INTERPRET=1)")
    options = parser.parse_args()
    until, draws, wrong = time.monotonic() + 60 * options.minutes, 0, 0
    for seed in itertools.count(options.seed):
        for operation in options.operation or sorted(DRAWS):
            if time.monotonic() > until:
                sys.stdout.write(f"{draws} draws from seed {options.seed} to {seed}: {wrong} findings\n")
                return int(wrong > 0)
            known = available_implementations(operation)
            chosen = [i for i in known if i == options.implementation or (not options.implementation and i != "triton")]
            for sentence in check(operation, seed, chosen) if chosen else ():
                sys.stdout.write(sentence + "\n")
                sys.stdout.flush()
                wrong += 1
            draws += 1
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())

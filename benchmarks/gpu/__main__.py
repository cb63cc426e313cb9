"""`python -m zoo.benchmarks.gpu`."""

import sys

from zoo.benchmarks.gpu import main

if __name__ == "__main__":
    sys.exit(main())

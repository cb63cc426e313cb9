"""What the papers say, rerun in miniature: a claim is a small declared experiment, `zoo claims` runs them.

A claim is a function under ``@claim``, in one of the files of this folder. Expectation and source stand in the
decorator, how it is measured in the docstring, and the function returns what was measured; the verdict follows from the
bound, and a miss stays visible. What a paper states for training at scale is declared by ``beyond`` with its figure.

Results are kept in ``benchmarks/results/claims.json``, of the schema in ``results.py``.
"""

from zoo.benchmarks.claims.declare import CLAIMS, EVIDENCE, Bound, Claim, Found, beyond, claim, declared

__all__ = ["CLAIMS", "EVIDENCE", "Bound", "Claim", "Found", "beyond", "claim", "declared"]

"""Products with one matrix of 2048 x 2048 in a few bits, beside the same in float32.

A model's weights come from memory, not from a cache: a run multiplies one copy of the matrix after another, of 128 MB
together for few rows, and its time is divided by their number. The bound of a product is what reading its matrix once
takes at the bandwidth that summing a gigabyte reaches.

MixPE scales the sum of a group once, after products of integers, instead of every weight before: counted by
``zoo.kernels.integer_matmul.product_cost``, priced as arithmetic in 45 nm (M. Horowitz, "Computing's energy problem",
ISSCC 2014, figure 1.1.9: products of 8 bits 0.2 pJ and of float32 3.7, sums of 32 bits 0.1 and of float32 0.9), and
timed as the products of 4 bits with inputs of float32 (before) and of 8 bits (after).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.benchmarks.common import interleaved
from zoo.benchmarks.tables import Shown
from zoo.kernels import sparse_matmul
from zoo.kernels.integer_matmul import product_cost
from zoo.kernels.sparse_matmul import compress, dense, row_starts
from zoo.layers.quant import LAYOUTS, Format

SIZE = 2048
ROWS = (1, 8, 64, 512)
FEW, MANY = 8, 64  # rows: copies are read from memory up to so many; from so many on dense float32 is the aim
COLD = 128 * 10**6  # bytes of all copies
DENSE = "float32"
GROUPS = (32, 64, 128)  # of MixPE
BEFORE = {"wide": 3.7, "narrow": 0.2, "add": 0.9, "dequantise": 3.7 + 0.9}  # pJ, in float32
AFTER = BEFORE | {"add": 0.1}  # sums of integers
NEAREST = 1.4  # of one row over the bound, of integers of 8, 4 and 3 bits
Tensors = Mapping[str, Tensor | None]


class Product(NamedTuple):
    """A product x W^T by an operation of ``zoo.kernels``: tensors of a matrix, ``call(x, tensors)``, and the matrix
    that tensors stand for."""

    operation: str
    make: Callable[[Tensor], Tensors]
    call: Callable[[Tensor, Any], Tensor]
    dense: Callable[[Any], Tensor]
    aims: bool = False


def record(operation: str, aims: bool = False, group_size: int = 32, **options: Any) -> Product:
    """Of a layout's codes."""
    form = Format(group_size=group_size, **options)
    layout = LAYOUTS[form.layout]

    def whole(tensors: Any) -> Tensor:
        return layout.dequantise(tensors, form, SIZE)

    return Product(operation, partial(layout.encode, form=form), partial(_of_codes, layout, form), whole, aims)


def _of_codes(layout: Any, form: Format, x: Tensor, tensors: Tensors) -> Tensor:
    return layout.matmul(x, tensors, form)


def sparse(columns: int, kept: int) -> Product:
    """The ``kept`` largest of every so many columns, in bfloat16."""

    def make(matrix: Tensor) -> Tensors:
        parts = matrix.unflatten(1, (-1, columns)).abs()
        places = torch.zeros_like(parts, dtype=torch.bool).scatter(-1, parts.topk(kept, -1).indices, True).flatten(1)
        mask, values = compress(matrix, places)
        return {"values": values.bfloat16(), "mask": mask, "start": row_starts(mask, matrix.shape[1])}

    def whole(tensors: Any) -> Tensor:
        return dense(tensors["values"], tensors["mask"], SIZE).float()

    return Product("sparse_matmul", make, lambda x, tensors: sparse_matmul(x, **tensors), whole)


PRODUCTS: dict[str, Product] = {
    DENSE: Product(
        "dense",
        lambda matrix: {"weight": matrix},
        lambda x, tensors: F.linear(x, tensors["weight"]),
        lambda tensors: tensors["weight"],
    ),
    "integers of 8 bits": record("lowbit_matmul", True, bits=8),
    "integers of 4 bits": record("lowbit_matmul", True, bits=4),
    "integers of 3 bits": record("lowbit_matmul", True, bits=3),
    "integers of 2 bits": record("lowbit_matmul", bits=2),
    "integers of 4 bits, inputs of 8": record("integer_matmul", bits=4, activation_bits=8),
    "odd integers of 2 bits, inputs of 2": record("integer_matmul", layout="bipolar", bits=2, activation_bits=2),
    "binary codes of 3 bits": record("binary_matmul", layout="binary", bits=3),
    "odd integers of 4 bits": record("binary_matmul", layout="bipolar", bits=4),
    "two planes": record("binary_matmul", layout="dual_binary", bits=2),
    "e4m3": record("minifloat_matmul", layout="e4m3", bits=8),
    "e2m1": record("minifloat_matmul", layout="e2m1", bits=4),
    "2:4": sparse(4, 2),
    "3:16": sparse(16, 3),
}
SCALED = {
    size: (f"integers of 4 bits{of}", f"integers of 4 bits, inputs of 8{of}")
    for size, of in zip(GROUPS, ("", *(f", groups of {size}" for size in GROUPS[1:])), strict=True)
}  # by group: scaled before and after the product
for size, (before, after) in list(SCALED.items())[1:]:
    PRODUCTS[before] = record("lowbit_matmul", bits=4, group_size=size)
    PRODUCTS[after] = record("integer_matmul", bits=4, activation_bits=8, group_size=size)
OPERATIONS = sorted({product.operation for product in PRODUCTS.values()} - {"dense"})


@torch.inference_mode()
def measured(bandwidth: float, budget: float, advance: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """A record a product and number of rows, all products of as many rows in turns."""
    torch.manual_seed(0)
    matrix = torch.randn(SIZE, SIZE) / SIZE**0.5
    made = {name: dict(product.make(matrix)) for name, product in PRODUCTS.items()}
    size = {name: sum(t.nbytes for t in held.values() if t is not None) for name, held in made.items()}
    for rows in ROWS:
        advance(f"products of {rows} rows")
        x = torch.randn(rows, SIZE)
        calls = {}
        for name, product in PRODUCTS.items():
            count = -(-COLD // size[name]) if rows <= FEW else 1
            calls[name] = partial(_through, product.call, x, [_copied(made[name]) for _ in range(count)])
        runs, found = interleaved(calls, budget=budget)
        for name, product in PRODUCTS.items():
            count = len(calls[name].args[2])
            expected = F.linear(x, product.dense(made[name]))
            yield {
                "name": name, "operation": product.operation, "rows": rows, "bytes": size[name],
                "runs": [taken / count for taken in runs[name]], "bandwidth": bandwidth,
                "apart": ((found[name] - expected).norm() / expected.norm()).item(),
            }  # fmt: skip


def _copied(tensors: Tensors) -> Tensors:
    return {name: None if t is None else t.clone() for name, t in tensors.items()}


def _through(call: Callable[[Tensor, Any], Tensor], x: Tensor, copies: Sequence[Tensors]) -> Tensor:
    for tensors in copies:
        y = call(x, tensors)
    return y


def show(records: Sequence[Mapping[str, Any]]) -> Shown:
    """A row a product: microseconds of each number of rows, one row over the bound, float32's time over its own."""
    times = {(r["name"], r["rows"]): statistics.median(r["runs"]) for r in records}
    rows = []
    for name in dict.fromkeys(r["name"] for r in records):
        own = next(r for r in records if r["name"] == name and r["rows"] == 1)
        over = times[name, 1] / (own["bytes"] / own["bandwidth"])
        ratios = {n: times[DENSE, n] / times[name, n] for n in ROWS}
        many = all(ratio >= 1 for n, ratio in ratios.items() if n >= MANY)
        aims = [f"{NEAREST} of the bound {_met(over <= NEAREST)}"] if PRODUCTS[name].aims else []
        aims += [] if name == DENSE else [f"many rows {_met(many)}"]
        rows.append([
            f"{name}, {own['operation']}", f"{8 * own['bytes'] / SIZE**2:.2f}", f"{own['apart']:.0e}",
            *(f"{times[name, n] * 1e6:.0f}" for n in ROWS), f"{over:.2f}",
            *(f"{ratios[n]:.2f}" for n in ROWS), "; ".join(aims),
        ])  # fmt: skip
    columns = [
        "matrix, operation", "bits a weight", "difference", *(f"us, {n} rows" for n in ROWS), "one row / bound",
        *(f"float32 / own, {n}" for n in ROWS), "aims",
    ]  # fmt: skip
    return f"Products with a matrix of {SIZE} x {SIZE}", columns, rows


def show_scaled(records: Sequence[Mapping[str, Any]]) -> Shown:
    """A row a size of groups: what MixPE's cost model counts for one row, and before over after of energy and time."""
    times = {(r["name"], r["rows"]): statistics.median(r["runs"]) for r in records}
    rows = []
    for size, (before, after) in SCALED.items():
        if (before, 1) not in times:
            continue
        costs: Any = {
            n: (
                product_cost(n, SIZE, SIZE, size, after=False, prices=BEFORE),
                product_cost(n, SIZE, SIZE, size, after=True, prices=AFTER),
            )
            for n in ROWS
        }
        rows.append([
            str(size), *(f"{cost.dequantisations:,}" for cost in costs[1]),
            *(f"{early.energy / late.energy:.2f}" for early, late in costs.values()),
            *(f"{times[before, n] / times[after, n]:.2f}" for n in ROWS),
        ])  # fmt: skip
    columns = [
        "group", "dequantised before, one row", "after", *(f"energy before / after, {n}" for n in ROWS),
        *(f"time before / after, {n}" for n in ROWS),
    ]  # fmt: skip
    return "Scaled before the product or after it (MixPE: 1.4 of the energy by its abstract)", columns, rows


def _met(met: bool) -> str:
    return "met" if met else "missed"

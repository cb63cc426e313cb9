"""What a product with groups of low-bit weights costs, scaled before it or after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ProductCost(NamedTuple):
    """Operations of one product: multiplications of a code with an activation, additions, dequantisations (a
    subtraction of a zero and a multiplication by a scale, each), and their energy in pJ where prices are known."""

    products: int
    additions: int
    dequantisations: int
    energy: float | None = None


def product_cost(
    rows: int, outputs: int, columns: int, group_size: int, *, after: bool, prices: Mapping[str, float] | None = None
) -> ProductCost:
    """Operations of (rows, columns) times (columns, outputs).

    Scaled before, every weight is dequantised once and multiplied as a wide number. Scaled after, weights are
    multiplied as they are, by shifts and additions, and each group's sum is dequantised: a share 1 / group_size of the
    products; what x sums to over a group is added up once for all outputs.

    Args:
        rows, outputs, columns: of the product.
        group_size: columns that share a scale and a zero; divides the columns.
        after: dequantise after the product.
        prices: pJ of each operation: "wide" (a multiplication of wide numbers), "narrow" (of a low-bit code), "add",
            "dequantise".

    Raises:
        ValueError: for a group that does not divide the columns.

    Paper: "MixPE: Quantization and Hardware Co-design for Efficient LLM Inference", arXiv 2411.16158.
    """
    if group_size < 1 or columns % group_size:
        raise ValueError(f"group_size must divide the columns, got group_size {group_size} for {columns} columns")
    groups, products = columns // group_size, rows * outputs * columns
    if after:
        sums = rows * (columns - groups)
        additions = rows * outputs * (columns - groups) + sums + rows * outputs * (groups - 1)
        found = ProductCost(products, additions, rows * outputs * groups)
    else:
        found = ProductCost(products, rows * outputs * (columns - 1), outputs * columns)
    if prices is None:
        return found
    product = prices["narrow" if after else "wide"]
    energy = found.products * product + found.additions * prices["add"] + found.dequantisations * prices["dequantise"]
    return found._replace(energy=energy)

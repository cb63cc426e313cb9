"""Products of low-bit activations with low-bit weights, exact in integers, scaled once a group."""

from zoo.kernels.integer_matmul.activations import quantised_rows
from zoo.kernels.integer_matmul.bit_serial import bit_serial_products, bit_serial_sums
from zoo.kernels.integer_matmul.cost import ProductCost, product_cost
from zoo.kernels.integer_matmul.groups import group_sums, scaled_products, scaled_sums
from zoo.kernels.integer_matmul.products import integer_products

__all__ = [
    "ProductCost",
    "bit_serial_products",
    "bit_serial_sums",
    "group_sums",
    "integer_products",
    "product_cost",
    "quantised_rows",
    "scaled_products",
    "scaled_sums",
]

"""Layouts of records by name: what the codes of a matrix stand for."""

from zoo.layers.quant.layouts.binary import Binary, DualBinary
from zoo.layers.quant.layouts.bipolar import Bipolar
from zoo.layers.quant.layouts.dual_grained import DualGrained
from zoo.layers.quant.layouts.integer import Integer, grid, nearest
from zoo.layers.quant.layouts.layout import SCALES, Layout
from zoo.layers.quant.layouts.minifloat import MINIFLOATS, MinifloatLayout
from zoo.layers.quant.layouts.nested import Nested
from zoo.layers.quant.layouts.table import Table

LAYOUTS: dict[str, Layout] = {
    "int": Integer(),
    "bipolar": Bipolar(),
    "binary": Binary(),
    "dual_binary": DualBinary(),
    "dual_grained": DualGrained(),
    "nested": Nested(),
    "table": Table(),
    **MINIFLOATS,
}

__all__ = [
    "LAYOUTS",
    "MINIFLOATS",
    "SCALES",
    "Binary",
    "Bipolar",
    "DualBinary",
    "DualGrained",
    "Integer",
    "Layout",
    "MinifloatLayout",
    "Nested",
    "Table",
    "grid",
    "nearest",
]

"""Compressed weights: the record they are kept in, the layers over records, and models built of them."""

from zoo.layers.quant.format import Format
from zoo.layers.quant.frozen import FrozenError, check_trainable
from zoo.layers.quant.layers import Conv, Embedding, Linear
from zoo.layers.quant.layouts import LAYOUTS, Layout
from zoo.layers.quant.record import Record
from zoo.layers.quant.replace import compressible, install, is_product, matrices, records, set_matrices
from zoo.layers.quant.size import count_parameters, stored_bytes

__all__ = [
    "LAYOUTS",
    "Conv",
    "Embedding",
    "Format",
    "FrozenError",
    "Layout",
    "Linear",
    "Record",
    "check_trainable",
    "compressible",
    "count_parameters",
    "install",
    "is_product",
    "matrices",
    "records",
    "set_matrices",
    "stored_bytes",
]

"""Compressed weights: the record they are kept in, the layers over records, and models built of them."""

from zoo.layers.quant.format import Format
from zoo.layers.quant.layers import Embedding, Linear
from zoo.layers.quant.record import Record
from zoo.layers.quant.replace import compressible, install, matrices, records
from zoo.layers.quant.size import check_trainable, count_parameters, stored_bytes

__all__ = [
    "Embedding",
    "Format",
    "Linear",
    "Record",
    "check_trainable",
    "compressible",
    "count_parameters",
    "install",
    "matrices",
    "records",
    "stored_bytes",
]

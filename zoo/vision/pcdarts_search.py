"""The network that a search for cells trains: PC-DARTS' with every operation on every edge.

Paper: Xu et al., "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search", arXiv 1907.05737.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from zoo.layers.conv.cell import Edge
from zoo.layers.conv.mixed import SearchCell, Strengths
from zoo.vision.pcdarts import PCDARTS, PCDARTSConfig


class Genotype(NamedTuple):
    """Cells as the authors of DARTS write them: (operation, source) of each edge, two a node, and the nodes whose maps
    a cell puts out. ``zoo.create_model("pcdarts_nano", normal=genotype.normal, reduce=genotype.reduce)`` builds them.
    """

    normal: list[Edge]
    normal_concat: range
    reduce: list[Edge]
    reduce_concat: range


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupernetConfig(PCDARTSConfig):
    """Options of a supernet: those of the network that is sought. Of ``normal`` and ``reduce`` only the number of
    edges counts."""

    share: int = 4
    """K: one in K channels passes through the operations."""

    @classmethod
    def of(cls, config: PCDARTSConfig, share: int) -> SupernetConfig:
        """That of the supernet in which cells for ``config`` are sought.

        Raises:
            TypeError: for a configuration of other networks.
        """
        if not isinstance(config, PCDARTSConfig):
            raise TypeError(f"cells are sought for a model of the family pcdarts, got a {type(config).__name__}")
        fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return cls(**{**fields, "share": share, "auxiliary_weight": 0.0})


class Supernet(PCDARTS):
    """PC-DARTS' network of ``SearchCell``.

    Attributes: normal, reduce: the ``Strengths`` of its two kinds of cells.
    """

    config: SupernetConfig

    def build_block(self, stage: int, index: int, drop_path: float) -> Any:
        """A cell with all operations."""
        c, place = self.config, self.place(stage, index)
        if not stage + index:
            self.normal, self.reduce = (Strengths(len(edges) // 2) for edges in (c.normal, c.reduce))
        strengths = self.reduce if place.reduction else self.normal
        return SearchCell(
            place.dims, c.dims[stage] // len(strengths.into), strengths,
            reduction=place.reduction, halve_first=place.halve_first, share=c.share,
        )  # fmt: skip

    @property
    def genotype(self) -> Genotype:
        """The strongest cells."""
        concat = (range(2, 2 + len(part.into)) for part in (self.normal, self.reduce))
        return Genotype(list(self.normal.edges()), next(concat), list(self.reduce.edges()), next(concat))

    def architecture(self) -> list[Any]:
        """The numbers that choose the cells, apart from the weights."""
        return [*self.normal.parameters(), *self.reduce.parameters()]

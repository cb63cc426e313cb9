"""Pass counts of cascades, worked by hand."""

from __future__ import annotations

import pytest

from zoo.passes import count_passes

SOFTMAX = """
QK[m, p] = Q[e, p] K[e, m]
GM[p] = max QK[m, p]             # known after the first pass
SN[m, p] = exp(QK[m, p] - GM[p])
SD[p] = SN[m, p]                 # after the second
"""
THREE = (
    SOFTMAX
    + """
A[m, p] = SN[m, p] / SD[p]       # in the third
AV[f, p] = A[m, p] V[f, m]
"""
)
DEFERRED = (
    SOFTMAX
    + """
SNV[f, p] = SN[m, p] V[f, m]
AV[f, p] = SNV[f, p] / SD[p]     # after m is gone
"""
)
TILED = """
QK[m1, m0, p] = Q[e, p] K[e, m1, m0]
LM[m1, p] = max QK[m1, m0, p]    # within a tile
SLN[m1, m0, p] = exp(QK[m1, m0, p] - LM[m1, p])
SLD[m1, p] = SLN[m1, m0, p]
GM[p] = max LM[m1, p]            # over all tiles
PLM[m1, p] = exp(LM[m1, p] - GM[p])
SD[p] = SLD[m1, p] PLM[m1, p]
SNV[f, p] = SLN[m1, m0, p] PLM[m1, p] V[f, m1, m0]
AV[f, p] = SNV[f, p] / SD[p]
"""
RUNNING = """
QK[m1, m0, p] = Q[e, p] K[e, m1, m0]
LM[m1, p] = max QK[m1, m0, p]
RM[m1 + 1, p] = max(RM[m1, p], LM[m1, p])
SLN[m1, m0, p] = exp(QK[m1, m0, p] - RM[m1 + 1, p])
SLD[m1, p] = SLN[m1, m0, p]
PRM[m1, p] = exp(RM[m1, p] - RM[m1 + 1, p])
RD[m1 + 1, p] = SLD[m1, p] + RD[m1, p] PRM[m1, p]
SLNV[m1, f, p] = SLN[m1, m0, p] V[f, m1, m0]
RNV[m1 + 1, f, p] = SLNV[m1, f, p] + RNV[m1, f, p] PRM[m1, p]
AV[f, p] = RNV[M1, f, p] / RD[M1, p]
"""


@pytest.mark.parametrize(
    ("cascade", "rank", "passes"),
    [
        (THREE, "m", 3),
        (DEFERRED, "m", 2),
        (TILED, "m1", 2),
        (RUNNING, "m1", 1),
        (THREE, "p", 1),  # queries stand by themselves
        ("s[] = x[d] x[d]\ny[d] = x[d] s[] g[d]", "d", 2),  # RMS norm
        ("s[] = x[d]\nc[d] = x[d] s[]\nv[] = c[d] c[d]\ny[d] = c[d] v[]", "d", 3),  # layer norm
        ("s[] = x[d]\nq[] = x[d] x[d]\ny[d] = x[d] s[] q[]", "d", 2),  # by both moments at once
        ("S[t + 1, k, v] = S[t, k, v] K[t, k] V[t, v]\ny[t, v] = Q[t, k] S[t + 1, k, v]", "t", 1),  # linear attention
        (["a[] = x[i]", "b[] = a[]", "c[i] = x[i] b[]"], "i", 2),
    ],
)
def test_worked_by_hand(cascade, rank, passes):
    assert count_passes(cascade, rank) == passes


@pytest.mark.parametrize(
    ("cascade", "rank", "message"),
    [
        ("y[p] x[m, p]", "m", r"an Einsum is written as .*, got 'y\[p\] x\[m, p\]'"),
        ("y[p] = 3", "p", "an Einsum is written as"),
        ("y[p] = x[m, p]", "k", "no tensor of the cascade has the rank 'k'"),
    ],
)
def test_errors(cascade, rank, message):
    with pytest.raises(ValueError, match=message):
        count_passes(cascade, rank)

"""Sparse matrices: how they lie, exact sums, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zoo.kernels import available_implementations, sparse_matmul
from zoo.kernels.sparse_matmul import compress, dense, native, places, row_starts

IMPLS = available_implementations("sparse_matmul")


@pytest.mark.parametrize("columns", [1, 8, 15, 16, 33, 100])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_matrix_comes_back(columns, share):
    matrix, kept = torch.randn(6, columns), torch.rand(6, columns) < share
    mask, values = compress(matrix, kept)
    assert mask.shape == (6, -(-columns // 8)) and mask.dtype == torch.uint8
    assert torch.equal(places(mask, columns), kept)
    assert torch.equal(dense(values, mask, columns), matrix * kept)
    if native.obstacle(matrix.device) is None:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert torch.equal(native.dense(values.to(dtype), mask, columns), (matrix * kept).to(dtype))
    assert row_starts(mask, columns).tolist() == [0, *kept.sum(1).cumsum(0).tolist()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, native.FEW, native.FEW + 1])
def test_integers_are_summed_exactly(rows, dtype):
    """In blocks of columns and a rest, rows without a number and rows full of them."""
    matrix = torch.randint(-4, 5, (9, 75))
    kept = torch.rand(9, 75) < torch.tensor([0.0, 1.0, 0.1, 0.5, 0.5, 0.9, 0.0, 0.2, 0.3])[:, None]
    mask, values = compress(matrix.to(dtype), kept)
    x = torch.randint(-2, 3, (rows, 75)).to(dtype)
    for impl in (*IMPLS, "auto"):
        y = sparse_matmul(x, values, mask, row_starts(mask, 75), impl=impl)
        assert torch.equal(y, (x.double() @ (matrix * kept).double().mT).to(dtype)), impl


def test_many_rows_are_the_dense_product_bit_for_bit():
    matrix, x = torch.randn(40, 64), torch.randn(native.FEW + 1, 64)
    mask, values = compress(matrix, torch.ones(40, 64, dtype=torch.bool))
    assert torch.equal(sparse_matmul(x, values, mask), F.linear(x, matrix))


@pytest.mark.skipif("native" not in IMPLS, reason="no C compiler")
def test_bits_without_values_give_nan_instead_of_what_lies_behind():
    mask, values = compress(torch.ones(3, 32), torch.rand(3, 32) < 0.5)
    start = row_starts(mask, 32)
    mask[1] = 255
    y = sparse_matmul(torch.ones(1, 32), values, mask, start, impl="native")[0]
    assert y[1].isnan() and not y[[0, 2]].isnan().any()
    assert native.dense(values, torch.full_like(mask, 255), 32)[2].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.zeros(4, 3, dtype=torch.uint8)}, r"mask must have shape \(N, ceil\(C / 8\)\)"),
        ({"mask": torch.zeros(4, 2)}, "mask must be uint8 and start int32, got .*float32"),
        ({"values": torch.ones(2, 4)}, r"values must have shape \(K,\)"),
        ({"values": torch.ones(9)}, "4 rows cannot have equally many of 9 values: give start"),
        ({"start": torch.zeros(4, dtype=torch.int32)}, r"start must have shape \(N \+ 1,\)"),
        ({"start": torch.zeros(5)}, "start int32"),
        ({"bias": torch.zeros(3)}, r"bias must have shape \(N,\)"),
    ],
)
def test_what_does_not_fit(change, message):
    given = {"x": torch.randn(1, 16), "mask": torch.full((4, 2), 3, dtype=torch.uint8), "values": torch.ones(16)}
    with pytest.raises(ValueError, match=f"sparse_matmul: .*{message}"):
        sparse_matmul(**given | change)

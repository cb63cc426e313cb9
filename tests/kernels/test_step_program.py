"""Products of a program of C: several rows at a time, and which of them may run beside one another."""

import pytest
import torch

from zoo.kernels import native
from zoo.kernels.step_program import SOURCE, Chosen, Program, Value, dense
from zoo.kernels.step_program.records import beside

pytestmark = pytest.mark.skipif(native.obstacle(SOURCE, torch.device("cpu")) is not None, reason="no C compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 5), (33, 100), (200, 768)])
def test_rows_times_a_matrix_of_any_shape(outputs, inputs, rows, dtype):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    x = torch.randn(rows, inputs, generator=generator)
    program = Program(rows)
    y = program.linear(Value(x), dense(program, weight))
    program.finish()
    program.run()
    exact = x.double() @ weight.double().T
    assert (y.tensor - exact).abs().max() <= 2 * torch.finfo(torch.float32).eps * (
        x.abs() @ weight.float().abs().T
    ).max()


@pytest.mark.parametrize("apart", [False, True], ids=["shared", "apart"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(7, 5), (333, 100), (1000, 77)])
def test_rows_times_the_matrices_that_they_chose_whose_rows_are_inputs(inputs, outputs, dtype, rows, apart):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, inputs, outputs, generator=generator).to(dtype)
    bias, index = torch.randn(3, outputs, generator=generator), torch.tensor([[2, 0], [1, 2], [0, 1]])[:rows]
    x = torch.randn(rows, 2 * inputs if apart else inputs, generator=generator)
    program = Program(rows)
    y = program.linear_of(Value(x), dense(program, weight), bias, Chosen(2, index, torch.empty(0)))
    program.finish()
    for _ in range(2):
        program.run()
    each = x.double().view(rows, 2, inputs) if apart else x.double()[:, None].expand(rows, 2, inputs)
    exact = torch.einsum("mki,mkio->mko", each, weight.double()[index]) + bias[index]
    largest = torch.einsum("mki,mkio->mko", each.abs(), weight.double()[index].abs()).max()
    assert (y.tensor.view(rows, 2, outputs) - exact).abs().max() <= 2 * torch.finfo(torch.float32).eps * largest


def test_what_reads_any_sum_of_a_matrix_whose_rows_are_inputs_waits_for_it():
    program, inputs, outputs = Program(2), 40, 2000
    chosen = Chosen(1, torch.zeros(2, 1, dtype=torch.int64), torch.empty(0))
    program.linear_of(Value(torch.randn(2, inputs)), dense(program, torch.randn(1, inputs, outputs)), None, chosen)
    first = program.records[0]
    chunks, x, y = first[1], first[2], first[4]
    assert chunks > 2
    elsewhere = y + 2**30

    def reading(place: int) -> list[int]:
        return [*first[:2], place, first[3], elsewhere, *first[5:]]

    last, behind = y + 4 * (chunks - 1) * outputs, y + 4 * chunks * outputs
    assert beside([first, reading(last)], 2) == [False, False]
    assert beside([first, reading(behind)], 2) == [False, True]
    writing = [*first[:4], x + 4 * (2 * inputs - 1), *first[5:]]  # the last number of the last row that is read
    assert beside([reading(x), writing], 2) == [False, False]


def test_products_of_one_value_run_beside_one_another_and_those_of_each_other_do_not():
    weights = [torch.randn(8, 8) for _ in range(4)]
    program = Program(2)
    x = Value(torch.randn(2, 8))
    q, k = (program.linear(x, dense(program, weight)) for weight in weights[:2])
    y = program.linear(k, dense(program, weights[2]))
    program.accumulate(q, program.linear(y, dense(program, weights[3])))
    program.finish()
    assert program.memory[:, -1].tolist() == [0, 1, 0, 0]
    program.run()
    expected = x.tensor @ weights[0].T + x.tensor @ weights[1].T @ weights[2].T @ weights[3].T
    torch.testing.assert_close(q.tensor, expected)

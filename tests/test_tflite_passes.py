"""Files for microcontrollers are slimmed: the same values to the bit, in the interpreter itself, from less memory."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("tflite_micro")

from redistill.export.microcontroller import InterpreterArena, measure_arena, open_interpreter
from redistill.export.tflite_file import TfliteFile
from redistill.export.tflite_layout import lay_out
from redistill.export.tflite_passes import slim
from tests.tflite_files import Writer


def run(data: bytes) -> list[np.ndarray]:
    interpreter = open_interpreter(data)
    shape = interpreter.get_input_details(0)["shape"]
    interpreter.set_input(np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8), 0)
    interpreter.invoke()
    return [interpreter.get_output(i).copy() for i in range(len(TfliteFile(data).graph.outputs))]


def slimmed(data: bytes) -> tuple[InterpreterArena, InterpreterArena, list[str]]:
    """The arenas before and after, of equal outputs, and the operations left."""
    after = slim(data)
    before, found = run(data), run(after)
    assert all(np.array_equal(a, b) for a, b in zip(before, found, strict=True))
    assert all(len(np.unique(a)) > 7 for a in found)
    file = TfliteFile(after)
    assert sorted({int(t) for o in file.operations for t in o.outputs} | set(file.graph.inputs)) == sorted(
        t for t in range(len(file.tensors)) if file.tensors[t].buffer == 0
    )
    return measure_arena(data), measure_arena(after), [file.name(o) for o in file.operations]


def test_a_map_is_cut_along_both_axes_at_once():
    writer = Writer((1, 16, 16, 8))
    rows = writer.slice(0, [0, 4, 0, 0], (1, 6, 16, 8))
    parts = [writer.convolution(writer.slice(rows, [0, 0, left, 0], (1, 6, 8, 8)), 4, 1, 1) for left in (0, 8)]
    before, after, names = slimmed(writer.finish(*parts, writer.slice(0, [0, 0, 0, 0], (1, 1, 1, 8))))
    assert names == ["slice", "conv_2d", "slice", "conv_2d", "slice"]
    assert before.live - after.live == 6 * 16 * 8 - 6 * 8 * 4  # the rows, where now the first result is at the peak


def test_a_map_is_padded_as_it_lies():
    writer = Writer((1, 8, 8, 4))
    turned = writer.pad(writer.transpose(0, [0, 3, 1, 2]), [[0, 0], [0, 0], [1, 0], [0, 2]])
    before, after, names = slimmed(writer.finish(writer.transpose(turned, [0, 2, 3, 1])))
    assert names == ["pad"]
    assert after.live < before.live
    assert TfliteFile(slim(writer.finish(turned))).name(TfliteFile(writer.finish(turned)).operations[0]) == "transpose"


@pytest.mark.parametrize("side", [8, 9])
def test_zeros_before_a_convolution_are_those_of_its_own_padding(side):
    writer = Writer((1, side, side, 4))
    padded = writer.pad(0, [[0, 0], [1, 1], [1, 1], [0, 0]])
    before, after, names = slimmed(writer.finish(writer.convolution(padded, 8, 3, 2)))
    assert names == ["conv_2d"]
    assert before.zeros == before.live - after.live > 0
    assert after.zeros == 0


def test_a_kernel_grows_only_where_the_copy_makes_the_peak():
    writer = Writer((1, 16, 16, 2))
    wide = writer.convolution(0, 32, 1, 1)
    once = writer.convolution(writer.pad(wide, [[0, 0], [1, 1], [1, 1], [0, 0]]), 4, 3, 2)
    again = writer.convolution(writer.pad(once, [[0, 0], [1, 1], [1, 1], [0, 0]]), 4, 3, 2)
    _, after, names = slimmed(writer.finish(again))
    assert names == ["conv_2d", "conv_2d", "pad", "conv_2d"]
    assert after.live == 16 * 16 * (2 + 32)


@pytest.mark.parametrize("amounts", [[[1, 0], [1, 1]], [[0, 0], [1, 1]], [[2, 2], [2, 2]]])
def test_zeros_that_no_padding_of_its_own_makes_are_left(amounts):
    writer = Writer((1, 9, 9, 4))
    made = writer.convolution(writer.pad(0, [[0, 0], *amounts, [0, 0]]), 8, 3, 1)
    before, after, names = slimmed(writer.finish(made))
    assert names == ["pad", "conv_2d"]
    assert before.live == after.live


def test_constants_begin_where_the_interpreter_wants_them():
    writer = Writer((1, 8, 8, 3))
    data = slim(writer.finish(writer.convolution(0, 5, 3, 1)))
    file = TfliteFile(data)
    for tensor in file.operations[0].inputs[1:]:
        assert data.find(file.constant(tensor).tobytes()) % 16 == 0


@pytest.mark.parametrize("seed", [16, 31])
def test_gaps_of_the_interpreters_own_plan_are_closed_by_offsets_in_the_file(seed):
    chosen, writer, maps = random.Random(seed), Writer((1, 8, 8, 2)), [0]
    for _ in range(7):
        maps.append(writer.convolution(chosen.choice(maps[-3:]), chosen.randint(1, 12), 1, 1))
    read = {tensor for operation in writer.graph.operators for tensor in operation.inputs}
    data = writer.finish(*(tensor for tensor in maps[1:] if tensor not in read))
    after = lay_out(data)
    assert all(np.array_equal(a, b) for a, b in zip(run(data), run(after), strict=True))
    assert measure_arena(data).activations > measure_arena(data).live == measure_arena(after).activations
    assert lay_out(after) == after

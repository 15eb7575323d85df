"""Toy graphs with exact bytes. Maps are 8x8 in fp32, and ``MAP`` is one channel of them: 8 * 8 * 4 = 256 bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from redistill import measure, profile
from redistill.errors import ModelError
from redistill.memory.conventions import CONVENTIONS
from tests.graphs import MAP, image, maps, trace


def conv(source: int, target: int) -> nn.Conv2d:
    return nn.Conv2d(source, target, 1)


class Branches(nn.Module):
    """``left`` and ``right`` of the same input, joined by a function: x (2) -> left (4), right (4) -> joined."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.join = conv(2, 4), conv(2, 4), join

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        right = self.right(x)
        return self.join(left, right)


class Diamond(nn.Module):
    """x (2) -> stem (4) -> left (4), right (4) -> left + right (4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv(2, 4), conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        left, right = self.left(stem), self.right(stem)
        del stem
        return left + right


def add_in_place(left: Tensor, right: Tensor) -> Tensor:
    left += right
    return left


def multiply_in_place(left: Tensor, right: Tensor) -> Tensor:
    left *= right
    return left


def test_chain_holds_two_neighbours():
    model = nn.Sequential(conv(2, 4), conv(4, 3))
    # last convolution: the pinned input 2 + 4 + 3; without it the first one is 2 + 4 and the last 4 + 3
    assert maps(model, image(2)) == [2 + 4 + 3, 4 + 3, 4 + 3, 2 + 4 + 3]


def test_diamond_holds_both_branches_and_their_source():
    # right: x 2 + stem 4 + left 4 + right 4; the sum: x 2 + 4 + 4 + 4. Without the pinned input 12, in deploy at right
    assert maps(Diamond(), image(2)) == [14, 12, 12, 14]


def test_activation_written_beside_its_input_counts_twice_but_for_deploy():
    # relu: x 2 + 4 + 4; without x 8; in place 4, so that the convolution's 2 + 4 is the peak
    assert maps(nn.Sequential(conv(2, 4), nn.ReLU()), image(2)) == [10, 8, 6, 10]


def test_activation_in_place_counts_once_but_for_arena():
    assert maps(nn.Sequential(conv(2, 4), nn.ReLU(inplace=True)), image(2)) == [6, 8, 6, 6]


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.Sigmoid, nn.Tanh])
def test_every_activation_overwrites_a_dying_input_in_deploy(activation):
    assert maps(nn.Sequential(conv(2, 4), activation()), image(2), conventions="arena deploy") == [8, 6]


def test_sum_beside_its_operands():
    # sum: x 2 + 4 + 4 + 4; arena 12; deploy overwrites left, so that right's 2 + 4 + 4 is the peak
    assert maps(Branches(torch.add), image(2)) == [14, 12, 10, 14]


def test_sum_in_place_counts_no_third_map_but_for_arena():
    assert maps(Branches(add_in_place), image(2)) == [10, 12, 10, 10]


def test_product_is_never_in_place_in_deploy():
    assert maps(Branches(torch.mul), image(2)) == [14, 12, 12, 14]
    assert maps(Branches(multiply_in_place), image(2)) == [10, 12, 12, 10]


def test_concatenation_copies():
    # 4 + 4 + 8, and the pinned input 2
    assert maps(Branches(lambda a, b: torch.cat([a, b], 1)), image(2)) == [18, 16, 16, 18]


def test_sum_of_unequal_sizes_overwrites_only_the_one_of_its_own_size():
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = conv(2, 1), conv(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            narrow = self.narrow(x)
            return narrow + self.wide(x)

    # wide: 2 + 1 + 8; sum: 1 + 8 + 8, in place 1 + 8
    assert maps(Broadcast(), image(2)) == [2 + 1 + 8 + 8, 1 + 8 + 8, 2 + 1 + 8, 2 + 1 + 8 + 8]


def test_views_cost_nothing():
    model = nn.Sequential(conv(2, 4), nn.Flatten(), nn.Linear(4 * 64, 1))
    # linear: x 2 maps + 4 maps + one fp32 number; without x the convolution's 2 + 4 maps are more
    assert [p * MAP for p in maps(model, image(2))] == [6 * MAP + 4, 6 * MAP, 6 * MAP, 6 * MAP + 4]


def test_a_view_keeps_all_of_its_storage_alive():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.last = conv(2, 8), conv(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.wide(x)[:, :1])

    # last: one channel is read, all 8 are alive, with 3 of its own
    assert maps(Half(), image(2)) == [2 + 8 + 3, 8 + 3, 8 + 3, 2 + 8 + 3]


def test_max_pool_needs_its_indices_while_it_runs():
    model = nn.Sequential(conv(2, 4), nn.MaxPool2d(2))
    # x 2 + 4 + output 4/4 + int64 indices 2 * 4/4; without indices the convolution's 2 + 4 is more than 4 + 1
    assert maps(model, image(2)) == [2 + 4 + 1 + 2, 6, 6, 9]


def test_batch_norm_folds_into_its_convolution():
    model = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4))
    assert maps(model, image(2)) == [2 + 4 + 4, 2 + 4, 2 + 4, 2 + 4 + 4]


def test_folded_batch_norm_leaves_the_activation_after_it():
    model = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), nn.ReLU())
    # as written norm and relu each hold two of 4; folded, relu alone does
    assert maps(model, image(2)) == [10, 8, 6, 10]


def test_batch_norm_beside_another_reader_of_its_convolution_does_not_fold():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(2, 4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return self.norm(y), y

    # the convolution's own output is wanted too: 4 + 4 (folded it would have been 2 + 4)
    assert maps(Both(), image(2)) == [10, 8, 8, 10]


def test_batch_norm_without_a_convolution_does_not_fold():
    model = nn.Sequential(conv(2, 4), nn.AvgPool2d(1), nn.BatchNorm2d(4), nn.AvgPool2d(1))
    # each step has 4 + 4; an average pool never overwrites, a batch norm by itself does in deploy
    assert maps(model, image(2)) == [10, 8, 8, 10]
    assert maps(nn.Sequential(nn.BatchNorm2d(4)), image(4), conventions="arena deploy") == [8, 8]


def test_dropout_costs_nothing_in_eval_mode():
    model = nn.Sequential(conv(2, 4), nn.Dropout(), nn.Dropout2d(), conv(4, 3))
    assert maps(model, image(2)) == [9, 7, 7, 9]


class Residual(nn.Module):
    """relu(stem) goes through a convolution and is added to stem itself, or to relu(stem)."""

    def __init__(self, keep_stem: bool) -> None:
        super().__init__()
        self.stem, self.relu, self.conv, self.keep_stem = conv(2, 4), nn.ReLU(), conv(4, 4), keep_stem

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        active = self.relu(stem)
        return self.conv(active) + (stem if self.keep_stem else active)


def test_a_value_still_to_be_read_is_not_overwritten():
    # stem, relu and conv are 4 each; the sum overwrites conv
    assert maps(Residual(keep_stem=True), image(2), conventions="arena deploy") == [12, 12]


def test_a_value_read_twice_is_overwritten_by_its_last_reader():
    # relu overwrites stem: conv holds 4 + 4, and the sum overwrites one of them
    assert maps(Residual(keep_stem=False), image(2), conventions="arena deploy") == [12, 8]


class Outputs(nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.first, self.second, self.third, self.both = conv(2, 4), conv(4, 4), conv(4, 1), both

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = self.first(x)
        last = self.third(self.second(first))
        return (first, last) if self.both else last


def test_an_output_is_kept_to_the_end():
    # third: first 4 (an output) + second 4 + third 1; as no output first is gone, and second's 4 + 4 is the peak
    assert maps(Outputs(both=True), image(2), conventions="graph arena deploy") == [2 + 9, 9, 9]
    assert maps(Outputs(both=False), image(2), conventions="graph arena deploy") == [2 + 8, 8, 8]


def test_the_graph_input_is_never_overwritten():
    assert maps(nn.Sequential(nn.ReLU()), image(2)) == [4, 4, 4, 4]
    # written by the module itself it is one buffer, which deploy does not grant
    assert maps(nn.Sequential(nn.ReLU(inplace=True)), image(2)) == [2, 4, 4, 2]


def test_the_graph_input_lives_as_long_as_it_is_read():
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.reduce = conv(2, 8), conv(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.reduce(self.expand(x))

    # reduce: x 2 + 8 + 2, pinned or not
    assert maps(Shortcut(), image(2)) == [12, 12, 12, 12]


def test_two_inputs_are_both_there_from_the_start():
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cat([nn.functional.avg_pool2d(x, 1), y], 1)

    # pool: 4 + 4 + 1; cat: 4 + 1 + 5, and the pinned x
    assert maps(Two(), image(4), image(1), conventions="graph arena deploy") == [4 + 1 + 4 + 5, 10, 10]


@pytest.mark.parametrize(("dtype", "per_value"), [(None, 4), ("fp32", 4), ("fp16", 2), ("bf16", 2), ("int8", 1)])
def test_floating_point_values_scale_with_the_type_and_indices_do_not(dtype, per_value):
    model = nn.Sequential(conv(2, 4), nn.MaxPool2d(2)).eval()
    expected = (2 + 4) * 64 * per_value + 4 * 16 * per_value + 4 * 16 * 8
    for convention in ("graph", "eager"):
        assert profile(model, image(2), convention, dtype).peak_bytes == expected
    assert profile(model, image(2), "deploy", dtype).peak_bytes == (2 + 4) * 64 * per_value


@pytest.mark.parametrize(("dtype", "per_value"), [("fp32", 4), ("bf16", 2), ("int8", 1)])
def test_integer_inputs_do_not_scale(dtype, per_value):
    model = nn.Sequential(nn.Embedding(10, 8))
    tokens = torch.arange(5)[None]
    assert profile(model, tokens, "graph", dtype).peak_bytes == 5 * 8 + 5 * 8 * per_value


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("batch", [2, 5])
def test_everything_scales_with_the_batch(convention, batch):
    model = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    one, many = (profile(model.eval(), image(2, batch=b), convention) for b in (1, batch))
    assert many.peak_bytes == batch * one.peak_bytes
    assert many.macs == batch * one.macs == batch * 2 * 4 * 64


def test_the_timeline_counts_what_is_alive_at_each_operation():
    found = profile(Diamond().eval(), image(2), "graph")
    assert [step.node for step in found.timeline] == ["x", "stem", "left", "right", "add", "output"]
    assert [step.live_bytes // MAP for step in found.timeline] == [2, 6, 10, 14, 14, 6]
    assert [step.macs for step in found.timeline] == [0, 2 * 4 * 64, 4 * 4 * 64, 4 * 4 * 64, 0, 0]
    assert found.macs == 64 * (8 + 16 + 16)
    assert found.parameters == (2 * 4 + 4) + 2 * (4 * 4 + 4)


def test_the_peak_is_the_first_operation_that_reaches_it_with_all_that_is_alive_there():
    found = profile(Diamond().eval(), image(2), "graph")
    assert (found.peak_step, found.peak_node, found.peak_bytes) == (3, "right", 14 * MAP)
    assert [(b.node, b.module, b.shape, b.bytes // MAP) for b in found.live] == [
        ("stem", "stem", (1, 4, 8, 8), 4),
        ("left", "left", (1, 4, 8, 8), 4),
        ("right", "right", (1, 4, 8, 8), 4),
        ("x", "", (1, 2, 8, 8), 2),
    ]
    assert [b.is_input for b in found.live] == [False, False, False, True]


def test_alive_at_any_step():
    found = profile(Diamond().eval(), image(2), "deploy")
    alive = [[(b.node, b.born, b.dies) for b in found.alive_at(step)] for step in range(6)]
    stem, left, right, x = ("stem", 1, 3), ("left", 2, 5), ("right", 3, 4), ("x", 0, 1)
    assert alive == [[x], [stem, x], [stem, left], [stem, left, right], [left, right], [left]]


def test_transients_are_listed_among_what_is_alive():
    found = profile(nn.Sequential(conv(2, 4), nn.MaxPool2d(2)).eval(), image(2), "graph")
    assert [(b.dtype, b.bytes) for b in found.live] == [
        ("float32", 4 * MAP),
        ("float32", 2 * MAP),
        ("transient", 2 * MAP),
        ("float32", MAP),
    ]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_is_alive_adds_up_at_every_step(convention):
    model = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    found = profile(model.eval(), image(2), convention)
    for step, entry in enumerate(found.timeline):
        assert sum(b.bytes for b in found.alive_at(step)) == entry.live_bytes


def test_module_paths_are_the_teachers_own():
    model = nn.Sequential(nn.Sequential(conv(2, 4), nn.ReLU()), nn.Sequential(conv(4, 8)))
    deploy = profile(model.eval(), image(2))
    assert [b.module for b in deploy.live] == ["1.0", "0.0"]
    eager = profile(model.eval(), image(2), "eager")
    assert [b.module for b in eager.live] == ["1.0", "0.1", ""]


def test_parameters_and_buffers_cost_nothing():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 2, 8, 8))
            self.register_buffer("shift", torch.ones(8, 8, 2, 1).permute(3, 2, 0, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.view(2, 8, 8) - self.shift

    # x 2 + product 2 + difference 2; deploy overwrites the product
    assert maps(Scaled(), image(2)) == [6, 4, 4, 6]


def test_a_module_that_runs_nothing_needs_its_input():
    assert maps(nn.Identity(), image(2)) == [2, 2, 2, 2]


def test_a_graph_module_is_profiled_as_it_is():
    module = trace(nn.Sequential(conv(2, 4), nn.ReLU()), image(2))
    assert profile(module, image(2), "graph").peak_bytes == 10 * MAP
    assert profile(module, image(2), "eager").peak_bytes == 10 * MAP  # a graph's own eager run


def test_the_meter_counts_the_toys_as_predicted():
    for model, expected in [(Diamond(), 14), (Branches(add_in_place), 10), (nn.Sequential(conv(2, 4), nn.ReLU()), 10)]:
        assert measure(model.eval(), image(2)) == expected * MAP
        assert measure(trace(model, image(2)), (image(2),)) == expected * MAP


def test_profiling_leaves_the_model_as_it_was():
    model = nn.Sequential(conv(2, 4), nn.BatchNorm2d(4), nn.Dropout())
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    profile(model, image(2))
    assert [part.training for part in model] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_unknown_convention_is_answered_with_the_known_ones():
    with pytest.raises(ModelError, match=r"there is no convention 'peak'; choose from deploy, arena, graph, eager"):
        profile(nn.Identity(), image(1), "peak")


def test_an_unknown_dtype_is_answered_with_the_known_ones():
    with pytest.raises(ModelError, match=r"unknown dtype 'fp8'; one of fp32, fp16, bf16, int8"):
        profile(nn.Identity(), image(1), dtype="fp8")

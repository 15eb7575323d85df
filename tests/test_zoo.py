import signal

import pytest
import torch

import redistill
from redistill.errors import ModelError
from redistill.evidence.zoo import catalogue, isolation
from redistill.evidence.zoo.results import Results, Row, listing, refusals, summary
from redistill.evidence.zoo.trial import try_network

A_MINUTE = isolation.Limits(60, 32 * 2**30)
ONE_SECOND = isolation.Limits(1, 32 * 2**30)


def test_a_networks_row_says_what_was_found():
    row = Row(**try_network(catalogue.Entry("torchvision", "torchvision:squeezenet1_1")))
    assert (row.outcome, row.budget, row.difference) == ("verified", "2x", 0)
    assert row.ratio >= 2
    assert row.seconds > 0


def test_a_network_without_convolutions_is_refused_with_a_reason():
    row = Row(**try_network(catalogue.Entry("torch", "torch.nn:Linear?in_features=4&out_features=2", "2x4")))
    assert (row.outcome, row.convolutions, row.planned) == ("refused", 0, False)
    assert row.reason


def test_a_builder_that_fails_is_not_counted_against_the_library():
    row = Row(**try_network(catalogue.Entry("torch", "torch.nn:Linear", "2x4")))
    assert row.outcome == "not built"


@pytest.mark.parametrize("library", catalogue.libraries())
def test_each_library_names_networks_once_and_inputs_that_can_be_read(library):
    found = list(catalogue.entries(library))
    assert len(found) > 10
    assert len({e.name for e in found}) == len(found)
    assert all(catalogue.read_inputs(e.inputs) for e in found if e.inputs)


def test_inputs_as_text():
    image, step = catalogue.read_inputs("1x3x8x8 i2")
    assert (image.shape, step.dtype) == ((1, 3, 8, 8), torch.int64)
    assert catalogue.read_inputs("x=2x4 mask=1").keys() == {"x", "mask"}
    assert [x.shape for x in catalogue.read_inputs("[3x8x8]")[0]] == [(3, 8, 8)]
    with pytest.raises(ModelError, match="cannot read"):
        catalogue.read_inputs("1x3,8")


def test_an_unknown_library_is_refused_with_those_there_are():
    with pytest.raises(ModelError, match="torchvision"):
        catalogue.select(["torchvison"], None, None)


def test_what_kills_a_process_is_its_row_not_ours():
    assert isolation.call(abs, -3, A_MINUTE).result == 3
    assert isolation.call(signal.raise_signal, signal.SIGSEGV, A_MINUTE).death == "SIGSEGV"
    assert isolation.call(max, range(10**12), ONE_SECOND).death == "out of time"


def test_rows_are_kept_and_found_again_after_a_cut_line(tmp_path):
    Results(tmp_path).add(Row("timm", "a", "verified", convolutions=2, budget="2x", difference=0, seconds=1.5))
    Results(tmp_path).add(Row("timm", "b", "refused", convolutions=1, reason="so | it is"))
    with (tmp_path / "zoo.jsonl").open("a") as file:
        file.write('{"library": "timm", "netw')
    rows = list(Results(tmp_path).rows.values())
    assert [row.network for row in rows] == ["a", "b"]
    assert "of 1 networks with convolutions beyond a patch embedding 1 are verified (100.0%): 1 at 2x" in str(
        summary(rows)
    )
    assert "so / it is" in str(listing(rows))


REASONS = {
    "only the data decide what it does": "Peaks cannot be traced: how much nonzero yields depends on the data",
    "a position embedding, a table or a view by constants fixes the grid": "x cannot be pooled, for it is the input; "
    "stem cannot be pooled, for add (stem) needs this very size; 2 plans did not hold when carried out",
    "no plan fits its windows": "x cannot be pooled, for it is the input; 2 plans did not hold when carried out",
    "the input or an output is the peak": "x cannot be pooled, for it is the input",
    "another reason": "AssertionError",
}


def test_refusals_are_told_apart_by_their_reasons():
    rows = [Row("timm", f"n{i}", "refused", convolutions=i, reason=text) for i, text in enumerate(REASONS.values())]
    table = refusals([*rows, Row("timm", "fine", "verified")])
    assert {(reason, count, names) for reason, count, _, names in table.rows} == {
        (reason, "1", f"n{i}") for i, reason in enumerate(REASONS)
    }
    assert sum(int(row[2]) for row in table.rows) == 3


def test_networks_without_any_smaller_plan_are_told_apart():
    rows = [Row("timm", name, outcome, convolutions=9, budget="2x", poolable=poolable) for name, outcome, poolable in (
        ("a", "verified", True), ("b", "refused", False), ("c", "refused", True), ("d", "refused", None),
    )]  # fmt: skip
    text = str(summary(rows))
    assert "of 4 networks with convolutions beyond a patch embedding 1 are verified (25.0%)" in text
    assert "1 have no plan that needs less than the teacher" in text
    assert "of the remaining 3 networks 1 are verified (33.3%)" in text


def test_a_row_says_whether_any_plan_is_smaller():
    spec = "torch.nn:Conv2d?in_channels=3&out_channels=4&kernel_size=3&padding=1"
    row = Row(**try_network(catalogue.Entry("torch", spec, "1x3x16x16")))
    assert (row.outcome, row.poolable) == ("refused", False)


class Peaks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        conv, relu = torch.nn.Conv2d, torch.nn.ReLU
        self.body = torch.nn.Sequential(conv(3, 16, 3, 2, 1), relu(), conv(16, 16, 3, 2, 1), relu(), conv(16, 1, 1))

    def forward(self, image):
        return self.body(image).sigmoid().gt(0.5).nonzero()


def test_a_network_whose_end_only_the_data_decide_is_tried_up_to_there():
    row = Row(**try_network(catalogue.Entry("kornia", "tests.test_zoo:Peaks", "1x3x32x32")))
    assert (row.outcome, row.part) == ("verified", "body")


class Tokens(torch.nn.Module):
    """Maps that are views of tokens, as in networks with channels last."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix = torch.nn.Conv2d(3, 64, 4, 4), torch.nn.Linear(64, 64)
        self.down, self.head = torch.nn.Conv2d(64, 32, 2, 2), torch.nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        tokens = self.mix(x.flatten(2).transpose(1, 2)).relu()
        return self.head(self.down(tokens.transpose(1, 2).unflatten(2, x.shape[2:])).mean((2, 3)))


def test_maps_that_are_views_of_tokens_are_planned():
    student = redistill.transform(Tokens().eval(), torch.randn(1, 3, 64, 64), budget="1.2x")
    assert student.plan.peak_bytes < student.plan.teacher_bytes

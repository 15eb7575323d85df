"""Reports of a teacher and its student: text, JSON, plot and page, on profiles whose figures are known."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from redistill.errors import RedistillError
from redistill.internal.text import shorten
from redistill.memory.conventions import DEPLOY, GRAPH
from redistill.memory.lifetimes import Buffer, MemoryProfile, Step
from redistill.planning.plan import Certificate, PoolingPlan
from redistill.planning.stages import Stage
from redistill.planning.taps import Tap
from redistill.report import (
    Comparison,
    align_steps,
    compare,
    describe_budget,
    format_bytes,
    format_count,
    group_steps,
    plot,
    plot_profile,
    profile_to_json,
    render,
    render_profile,
    stage_of_steps,
    stage_rows,
    to_json,
    write_page,
    write_profile_page,
)
from redistill.report.phrases import describe_order
from redistill.report.tables import draw_bar

MIB = 1024**2
STAGES = (
    Stage(0, "x", (8, 8), ("x",), "it is the input", boundary=True),
    Stage(1, "stem", (4, 4), ("stem", "relu")),
    Stage(2, "body.0", (2, 2), ("body_0",), "a flatten needs this very size"),
)


def _teacher() -> MemoryProfile:
    """Peak: input (1 MiB) and stem (2 MiB) alive together at the second of five steps."""
    timeline = (
        Step("x", "", MIB),
        Step("stem", "stem", 3 * MIB, macs=4_000_000),
        Step("relu", "relu", 2 * MIB),
        Step("body_0", "body.0", 2 * MIB + MIB // 2, macs=1_000_000),
        Step("fc", "fc", MIB // 2 + 40, macs=500),
    )
    buffers = (
        Buffer("x", "", (1, 3, 8, 8), "float32", MIB, 0, 1, is_input=True),
        Buffer("stem", "stem", (1, 8, 4, 4), "float32", 2 * MIB, 1, 3),
        Buffer("body_0", "body.0", (1, 8, 2, 2), "float32", MIB // 2, 3, 4),
        Buffer("fc", "fc", (1, 10), "float32", 40, 4, 4),
    )
    return MemoryProfile(DEPLOY, timeline, buffers, 3 * MIB, parameters=1000)


def _student() -> MemoryProfile:
    """As the teacher with a stem of a quarter, and a RED block after it; one transient there."""
    timeline = (
        Step("x", "", MIB),
        Step("stem", "stem", MIB + MIB // 2, macs=1_000_000),
        Step("relu", "relu", MIB // 2),
        Step("red_stem_out", "red.stem_out", MIB + 1024, transient_bytes=1024, macs=200_000),
        Step("body_0", "body.0", MIB, macs=1_000_000),
        Step("fc", "fc", MIB // 2 + 40, macs=500),
    )
    buffers = (
        Buffer("x", "", (1, 3, 8, 8), "float32", MIB, 0, 1, is_input=True),
        Buffer("stem", "stem", (1, 8, 2, 2), "float32", MIB // 2, 1, 3),
        Buffer("red_stem_out", "red.stem_out", (1, 8, 2, 2), "float32", MIB // 2, 3, 4),
        Buffer("body_0", "body.0", (1, 8, 2, 2), "float32", MIB // 2, 4, 5),
        Buffer("fc", "fc", (1, 10), "float32", 40, 5, 5),
    )
    return MemoryProfile(DEPLOY, timeline, buffers, MIB, parameters=1100)


def _comparison(limit: int | None = 3 * MIB // 2, **changes: object) -> Comparison:
    certificate = Certificate(25, 7, 1.0)
    plan = PoolingPlan((2, 1), (1, 2, 1), 3 * MIB // 2, 0.4, "macs", limit, certificate)
    tap = Tap("stem_out", "stem out", "body.0 out", (2, 2), 8, "relu", "body_0", "stem", "out")
    made = compare("test:net", "3x8x8", _teacher(), _student(), STAGES, plan, (tap,), ("A note.",), 1.25, "weights.pt")
    return replace(made, **changes)


# Words


def test_sizes_have_three_decimals_and_a_fitting_unit() -> None:
    assert [format_bytes(n) for n in (7225344, 104858, 104857, 1024, 1023, 0)] == [
        "6.891 MiB", "0.100 MiB", "102.399 KiB", "1.000 KiB", "1023 B", "0 B",
    ]  # fmt: skip
    assert [format_count(n) for n in (1_814_073_344, 1_000_000, 1500, 999)] == ["1.814 G", "1.000 M", "1.500 K", "999"]


def test_the_budget_sentence_tells_met_missed_and_none() -> None:
    assert describe_budget(7225344, 1805664, 1806336) == "6.891 MiB -> 1.722 MiB, 4.00x under a budget of 1.723 MiB"
    assert describe_budget(4 * MIB, 2 * MIB, MIB) == (
        "4.000 MiB -> 2.000 MiB, 2.00x, 1.000 MiB OVER the budget of 1.000 MiB"
    )
    assert describe_budget(4 * MIB, 2 * MIB, None) == "4.000 MiB -> 2.000 MiB, 2.00x (no budget was set)"


def test_the_order_is_judged_by_the_lower_bound() -> None:
    assert describe_order(_teacher()) == "the order is optimal: no order of these operations needs less than 3.000 MiB"
    assert describe_order(_student()) == "50.0 % above the lower bound of 1.000 MiB over all orders"
    assert "not known" in describe_order(replace(_teacher(), lower_bound=None))


def test_names_shorten_in_the_middle_and_bars_by_eighths() -> None:
    assert shorten("features.denseblock1", 11) == "featu…lock1"
    assert draw_bar(1, 2, 3) == "█▌"
    assert draw_bar(1, 0) == ""


# Data


def test_stage_rows_hold_grids_peaks_and_macs_of_both() -> None:
    x, stem, body = stage_rows(_comparison())
    assert (x.label, x.teacher_peak, x.student_peak, x.factor) == ("x (input)", MIB, MIB, 1)
    assert (stem.teacher_grid, stem.student_grid, stem.factor) == ((4, 4), (2, 2), 2)
    assert (stem.teacher_peak, stem.student_peak) == (3 * MIB, 3 * MIB // 2)
    assert (stem.teacher_macs, stem.student_macs) == (4_000_000, 1_200_000)  # the RED block is the stem's
    assert (body.teacher_peak, body.student_peak) == (5 * MIB // 2, MIB)
    assert (body.teacher_macs, body.student_macs) == (1_000_500, 1_000_500)  # the head joins the last stage


def test_the_stages_macs_add_up() -> None:
    rows = stage_rows(_comparison())
    assert sum(row.teacher_macs for row in rows) == _teacher().macs
    assert sum(row.student_macs for row in rows) == _student().macs


def test_steps_of_no_stage_join_the_one_before() -> None:
    assert stage_of_steps(_student(), STAGES) == (0, 1, 1, 1, 2, 2)


def test_timelines_align_by_node() -> None:
    assert align_steps(_teacher(), _student()) == ((0, 0), (1, 1), (2, 2), (None, 3), (3, 4), (4, 5))


def test_groups_cover_the_timeline_and_open_long_modules() -> None:
    steps = [Step("x", "", 1), *(Step(f"b{i}_{j}", f"body.{i}.{j}", i + j) for i in range(3) for j in range(4))]
    profile = MemoryProfile(GRAPH, tuple(steps), (), None)
    assert [g.name for g in group_steps(profile)] == ["input", *(f"body.{i}.{j}" for i in range(3) for j in range(4))]
    groups = group_steps(profile, most=4)
    assert [(g.name, g.first, g.last, g.peak_bytes) for g in groups] == [
        ("input", 0, 0, 1), ("body.0", 1, 4, 3), ("body.1", 5, 8, 4), ("body.2", 9, 12, 5),
    ]  # fmt: skip


def test_json_of_a_comparison() -> None:
    data = to_json(_comparison())
    assert json.loads(json.dumps(data)) == data
    assert (data["teacher"]["peak_bytes"], data["student"]["peak_bytes"], data["ratio"]) == (3 * MIB, 3 * MIB // 2, 2.0)
    assert (data["teacher"]["macs"], data["student"]["macs"]) == (5_000_500, 2_200_500)
    assert (data["teacher"]["parameters"], data["student"]["parameters"]) == (1000, 1100)
    assert data["plan"] == [
        {"stage": "stem", "grid": [4, 4], "student_grid": [2, 2], "factor": 2},
        {"stage": "body.0", "grid": [2, 2], "student_grid": [2, 2], "factor": 1},
    ]
    tap = {"student": "stem out", "teacher": "body.0 out", "grid": [2, 2], "channels": 8, "name": "stem_out"}
    assert data["taps"] == [tap]
    assert data["budget"] == {"bytes": 3 * MIB // 2, "met": True}
    assert data["certificate"] == {"lattice": 25, "visited": 7, "best_score": 1.0, "excluded": 0}
    assert (data["convention"], data["objective"], data["seconds"], data["notes"]) == (
        "deploy",
        "macs",
        1.25,
        ["A note."],
    )
    assert (data["teacher"]["order_is_optimal"], data["student"]["order_is_optimal"]) == (True, False)
    assert [b["node"] for b in data["teacher"]["live"]] == ["stem", "x"]
    assert set(data["versions"]) == {"redistill", "torch", "python"}


def test_json_without_a_budget_or_a_certificate() -> None:
    comparison = _comparison(limit=None)
    data = to_json(replace(comparison, plan=replace(comparison.plan, certificate=None)))
    assert data["budget"] == {"bytes": None, "met": None}
    assert data["certificate"] is None


def test_json_of_a_profile() -> None:
    data = profile_to_json(_student())
    assert json.loads(json.dumps(data)) == data
    assert (data["peak_bytes"], data["peak_step"], data["peak_node"]) == (3 * MIB // 2, 1, "stem")
    assert len(data["timeline"]) == 6
    assert data["buffers"][1]["shape"] == [1, 8, 2, 2]


# Tables

EXPECTED = """\
test:net  ·  input 3x8x8  ·  weights.pt
deploy convention: batch norm folded, activations and sums overwrite a dying input, the graph input
counted while in use
────────────────────────────────────────────────────────────────────────────────────────────────────

Peak activation memory  3.000 MiB -> 1.500 MiB, 2.00x under a budget of 1.500 MiB  [budget met]

Levers  what each leads to, and what it costs
  in place, in this order  3.000 MiB
  pooling                  1.500 MiB  40.0 % of the MACs kept, accuracy; RED blocks add 4.0 %

                           grid                           peak              MACs
stage          teacher  student   factor    teacher    student  teacher  student
────────────────────────────────────────────────────────────────────────────────
x (input)          8x8      8x8        -  1.000 MiB  1.000 MiB        0        0
stem               4x4      2x2        2  3.000 MiB  1.500 MiB  4.000 M  1.200 M
body.0             2x2      2x2  1 fixed  2.500 MiB  1.000 MiB  1.000 M  1.000 M
────────────────────────────────────────────────────────────────────────────────
whole network                             3.000 MiB  1.500 MiB  5.000 M  2.200 M

Taps  student - teacher, each with a RED block in the student
  stem out  -  body.0 out  2x2  8 channels

Alive at the teacher's peak  3.000 MiB in step 2 of 5, stem
  2.000 MiB  66.7 %  stem     1x8x4x4 float32
  1.000 MiB  33.3 %  input x  1x3x8x8 float32

Alive at the student's peak  1.500 MiB in step 2 of 6, stem
  1.000 MiB  66.7 %  input x  1x3x8x8 float32
  0.500 MiB  33.3 %  stem     1x8x2x2 float32

MACs        5.000 M -> 2.200 M, 40.0 % kept, 200.000 K in RED blocks
Parameters  1.000 K -> 1.100 K
Plan        2, 1; optimal among 25 plans (proved by visiting 7 nodes of the search tree)
Objective   macs
Teacher     the order is optimal: no order of these operations needs less than 3.000 MiB
Student     50.0 % above the lower bound of 1.000 MiB over all orders
Took        1.2 s

Notes
  - A note.
"""


def test_the_text_of_a_comparison() -> None:
    assert render(_comparison()) == EXPECTED


def test_the_text_stays_within_its_width() -> None:
    assert max(map(len, render(_comparison(notes=("long " * 60,))).splitlines())) <= 100


def test_a_missed_budget_and_a_broken_promise_are_said() -> None:
    text = render(_comparison(limit=MIB))
    assert "0.500 MiB OVER the budget of 1.000 MiB  [budget NOT met]" in text
    comparison = _comparison()
    text = render(replace(comparison, plan=replace(comparison.plan, peak_bytes=MIB), taps=()))
    assert "The plan had promised 1.000 MiB." in text
    assert "Taps" not in text


def test_many_buffers_at_the_peak_are_summed_up() -> None:
    buffers = tuple(Buffer(f"n{i}", f"m{i}", (1,), "float32", 1024, 0, 0) for i in range(11))
    text = render_profile(MemoryProfile(GRAPH, (Step("n", "m", 11 * 1024),), buffers, None), "many")
    assert "3.000 KiB  27.3 %  3 more" in text


def test_the_text_of_a_profile() -> None:
    text = render_profile(_teacher(), "test:net")
    assert "Peak        3.000 MiB in step 2 of 5" in text
    assert "  stem   1  3.000 MiB  " + "█" * 40 + " peak\n" in text
    assert "  input  1  1.000 MiB  " + "█" * 13 + "▍\n" in text
    assert "step 4  2.500 MiB   83.3 %  body.0\n" in text


# Plots


@pytest.mark.parametrize("size", [(1200, 500), (640, 360)])
def test_the_plot_is_a_png_of_the_size_asked(tmp_path: Path, size: tuple[int, int]) -> None:
    plot(_comparison(), tmp_path / "both.png", size)
    plot_profile(_teacher(), tmp_path / "one.png", "test:net", size)
    for name in ("both.png", "one.png"):
        content = (tmp_path / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", content[16:24]) == size
        assert len(content) > 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both.png", "one.png"]


# Pages


def _page_data(text: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_holds_the_data_and_asks_for_nothing(tmp_path: Path) -> None:
    write_page(_comparison(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = _page_data(text)
    assert "http" not in text
    assert not re.search(r"\{\{\w+\}\}", text)
    assert data["limit"] == 3 * MIB // 2
    assert data["columns"] == [[0, 0], [1, 1], [2, 2], [None, 3], [3, 4], [4, 5]]
    teacher, student = data["models"]
    assert [s["live"] for s in teacher["steps"]] == [s.live_bytes for s in _teacher().timeline]
    assert student["steps"][3] == {"place": "red.stem_out", "live": MIB + 1024, "transient": 1024, "group": 1}
    assert teacher["buffers"][0] == {
        "place": "input x", "kind": "1x3x8x8 float32", "bytes": MIB, "born": 0, "dies": 1, "group": 0,
    }  # fmt: skip
    assert "2.00x under a budget of 1.500 MiB" in text
    assert '<span class="verdict good">budget met</span>' in text


def test_live_bytes_are_the_sum_of_what_the_page_stacks(tmp_path: Path) -> None:
    write_page(_comparison(), tmp_path / "page.html")
    for model in _page_data((tmp_path / "page.html").read_text(encoding="utf-8"))["models"]:
        for at, step in enumerate(model["steps"]):
            alive = sum(b["bytes"] for b in model["buffers"] if b["born"] <= at <= b["dies"])
            assert alive + step["transient"] == step["live"]


def test_text_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "</script><b>{{data}}"
    teacher = replace(_teacher(), timeline=(replace(_teacher().timeline[0], node=evil), *_teacher().timeline[1:]))
    write_page(_comparison(title=evil, notes=(evil,), teacher=teacher), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2
    assert "<b>{{" not in text
    assert _page_data(text)["models"][0]["steps"][0]["place"] == evil


def test_the_page_of_a_profile(tmp_path: Path) -> None:
    write_profile_page(_teacher(), "test:net", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = _page_data(text)
    assert "http" not in text
    assert [g["name"] for g in data["groups"]] == ["input", "stem", "relu", "body", "fc"]
    assert data["columns"] == [[0], [1], [2], [3], [4]]


# Files


@pytest.mark.parametrize("write", [plot, write_page])
def test_an_unwritable_path_is_named_in_one_line(tmp_path: Path, write: object) -> None:
    path = tmp_path / "missing" / "report"
    with pytest.raises(RedistillError, match="missing/report: No such file or directory; give a file in") as caught:
        write(_comparison(), path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RedistillError, match="Is a directory"):
        write_page(_comparison(), tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_report_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    write_page(_comparison(), path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


# A real network


def test_a_captured_network_reports_in_every_form(tmp_path: Path) -> None:
    from redistill.memory.profiling import profile
    from redistill.planning.partition import find_stages
    from redistill.tracing.capture import capture

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 32, 32)
    graph_module = capture(net, (x,)).graph_module
    stages = find_stages(graph_module, (x,)).stages
    found = profile(graph_module, x)
    plan = PoolingPlan((1, 1), (1, 1, 1), found.peak_bytes, 1.0, "macs", None, None)
    comparison = compare("net", "3x32x32", found, found, stages, plan)
    assert found.peak_bytes == 4 * (3 * 32 * 32 + 8 * 16 * 16)
    assert [row.teacher_peak for row in stage_rows(comparison)] == [12288, 20480, 12288]
    assert "20.000 KiB -> 20.000 KiB, 1.00x (no budget was set)" in render(comparison)
    plot(comparison, tmp_path / "net.png")
    write_page(comparison, tmp_path / "net.html")

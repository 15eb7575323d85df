"""The gallery: entries from models, students and runs, and the picture and page that show them."""

import json
import re
import struct
import xml.etree.ElementTree as ET

import pytest

from redistill.cli import run
from redistill.errors import InfeasibleBudgetError, RedistillError
from redistill.report.data import align_steps
from redistill.studies.benchmark import make_pair
from redistill.studies.gallery import Accuracy, collect, draw_gallery, read_accuracies, read_entry, write_gallery
from redistill.studies.gallery.__main__ import main
from redistill.studies.gallery.drawings import draw_footprint, draw_frontier

MODEL = "tests.test_benchmark:small"
SHAPE = "3x32x32"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """As the trainer leaves it."""
    folder = tmp_path_factory.mktemp("run")
    make_pair(MODEL, "2x", shape=SHAPE).student.save(folder / "student")
    summary = {"teacher": {"test": {"top1": 91.5, "loss": 0.3}}, "last": {"test": {"top1": 88.25, "loss": 0.4}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def entries(run_folder):
    found, refused = collect([str(run_folder), MODEL], "4x", SHAPE, trust=True)
    assert refused == {}
    return found


def test_a_run_brings_its_accuracies_and_a_model_has_none(entries, run_folder):
    assert [entry.name for entry in entries] == ["small", "small"]
    assert entries[0].accuracy == Accuracy(91.5, 88.25)
    assert entries[0].known == (91.5, 88.25)
    assert entries[1].accuracy is None
    assert read_entry(str(run_folder / "student"), trust=True).accuracy == Accuracy(91.5, 88.25)
    assert entries[0].comparison.ratio >= 2
    assert entries[1].comparison.ratio >= 4


def test_the_user_s_accuracies_go_before_a_run_s(run_folder):
    (entry,), _ = collect([str(run_folder)], known={MODEL: Accuracy(90.0, None)}, trust=True)
    assert entry.accuracy == Accuracy(90.0, None)
    assert entry.known == ()
    assert entry.describe_accuracy() == "90.00 % → ?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("known.csv", "model,teacher,student\na:b,70.5,\nc,80,79.5\n"),
        ("known.json", '{"a:b": {"teacher": 70.5}, "c": {"teacher": 80, "student": 79.5}}'),
    ],
)
def test_accuracies_are_read_from_csv_and_json(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_accuracies(tmp_path / name) == {"a:b": Accuracy(70.5, None), "c": Accuracy(80.0, 79.5)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "name,teacher\na,1\n", "no column 'model'"),
        ("a.csv", "model,teacher\na,good\n", "good"),
        ("a.csv", "model,top1\na,70\n", "neither teacher nor student"),
        ("a.json", "[1, 2]", "as JSON"),
        ("a.json", '{"a": {"teacher": 170}}', "not a percentage"),
        ("a.json", "{", "as JSON"),
    ],
)
def test_other_accuracies_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(RedistillError, match=message):
        read_accuracies(tmp_path / name)


def test_the_footprint_shows_every_step_of_both(entries):
    comparison = entries[0].comparison
    drawing = ET.fromstring(draw_footprint(comparison))
    paths = {path.get("class"): path.get("d") for path in drawing.iter("path")}
    columns = len(align_steps(comparison.teacher, comparison.student))
    assert [paths[name].count("H") for name in ("teacher", "student")] == [columns, columns]
    top = {name: min(float(y) for y in re.findall(r"V([\d.]+)", d)) for name, d in paths.items()}
    floor = float(re.match(r"M[\d.]+,([\d.]+)", paths["teacher"])[1])
    drawn = (floor - top["teacher"]) / (floor - top["student"])
    assert drawn == pytest.approx(comparison.ratio, rel=0.02)


def test_the_frontier_shows_the_known_only_and_links_to_their_cards(entries):
    drawing = ET.fromstring(draw_frontier(entries))
    assert [link.get("href") for link in drawing.iter("a")] == ["#student-0"]
    words = " ".join(text.text or "" for text in drawing.iter("text"))
    assert "-3.2" in words or "-3.3" in words  # 91.5 to 88.25
    places = {kind: float(next(drawing.iter(kind)).get(x)) for kind, x in (("rect", "x"), ("circle", "cx"))}
    assert places["circle"] < places["rect"]


def test_the_page_is_whole_and_needs_no_network(entries, tmp_path):
    write_gallery(entries, tmp_path / "g.html", {"b<c": "out of <reach>"})
    page = (tmp_path / "g.html").read_text()
    assert page.count('<section id="student-') == 2
    assert "{{" not in page
    assert "out of &lt;reach&gt;" in page
    assert not re.search(r'(src|href)="?(https?:)?//', page)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    assert len(data["cards"]) == 2
    assert len({len(data["cards"][0][key]) for key in ("places", "teacher", "student")}) == 1
    write_gallery(entries[1:], tmp_path / "h.html")
    assert "Memory against accuracy" not in (tmp_path / "h.html").read_text()


def test_the_picture_grows_with_what_it_shows(entries, tmp_path):
    sizes = []
    for number in (1, 2, 3):
        path = tmp_path / f"{number}.png"
        draw_gallery((*entries, *entries)[:number], path)
        sizes.append(struct.unpack(">II", path.read_bytes()[16:24]))
    assert {width for width, _ in sizes} == {1600}
    assert sizes[0][1] == sizes[1][1] < sizes[2][1]


def test_a_budget_out_of_reach_leaves_a_model_out_and_all_of_them_is_an_error(run_folder):
    found, refused = collect([str(run_folder), MODEL], "1KiB", SHAPE, trust=True)
    assert len(found) == 1
    assert "best that can be had" in refused[MODEL]
    with pytest.raises(InfeasibleBudgetError):
        collect([MODEL], "1KiB", SHAPE)


def test_the_command(run_folder, tmp_path, capsys):
    picture, page = str(tmp_path / "g.png"), str(tmp_path / "g.html")
    assert run(main, ["--trust", str(run_folder), "--output", picture, "--html", page]) == 0
    printed = capsys.readouterr().out
    assert "91.50 % → 88.25 %" in printed
    assert f"page written to {page}" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.html", "g.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "neither a folder nor a model"),
        (["."], "there is no student in ."),
        (["torchvision:resnet19"], "resnet1"),
        (["{run}", "--accuracies", "missing.csv"], "missing.csv"),
        (["{run}", "--accuracies", "{run}/stray.json"], "'resnet50', which is not shown here"),
        (["{run}", "--html", "{run}/stray.json"], "--force"),
        (["{run}", "--output", "/proc/nowhere/g.png"], "/proc/nowhere/g.png"),
    ],
)
def test_bad_input_is_one_line_with_nothing_written(arguments, message, run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run_folder / "stray.json").write_text('{"resnet50": {"teacher": 76}}')
    assert run(main, ["--trust", *(argument.format(run=run_folder) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []

"""Every example runs, in a folder of its own, and says what it promises."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
MOST_LINES = 40
HELPERS = {"digits"}
SAYS = {
    "budget_sweep": r"4x  \d, .* of the work  9\d\.\d %[^!]* 100x  no student of Sequential fits",
    "own_convention": r"deploy: 22,528 bytes.*\n *camera: 23,552 bytes",
    "own_data": r"last +\d+\.\d\d %",
    "own_loop": r"epoch 3: 9\d\.\d %",
    "own_method": r"'sorted/logits': \d+\.\d+",
    "own_pass": r"4 activations replaced; .*\n9\d\.\d % after two epochs",
    "pretrained_and_folder": r"student, curves and log: run",
    "to_a_device": r"student\.pte: .* arena 5,632 bytes \(equal\)\nstudent_int8\.pte",
}
SLOW = {"pretrained_and_folder"}
NEEDS = {"to_a_device": ("executorch", "torchao")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_has_a_test(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES or path.stem in HELPERS
    assert path.stem in SAYS.keys() | HELPERS


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SAYS])
def test_an_example_runs_and_says_what_it_promises(name, place, capfd):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    except SystemExit as ended:
        assert ended.code == 0  # noqa: PT017  # a command that went well ends so
    said = capfd.readouterr()
    assert re.search(SAYS[name], said.out), said.out + said.err


def test_the_notebook_runs(place, capsys):
    shutil.copy(EXAMPLES / "tour.ipynb", place)
    cells = json.loads((place / "tour.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
    assert names["student"].plan.peak_bytes * 4 <= names["whole"].peak_bytes
    assert "MiB" in capsys.readouterr().out or names["losses"]

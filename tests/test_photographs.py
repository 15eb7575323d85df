"""The evidence on photographs, on a small network in place of the public one."""

import pytest
import torch
from PIL import Image
from torch import nn

import redistill
from redistill.errors import DataError, StudentError
from redistill.evidence import photographs


@pytest.fixture
def small(monkeypatch, tmp_path):
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 20),
    ).eval()  # fmt: skip
    monkeypatch.setattr(photographs, "EXAMPLE", (1, 3, 32, 32))
    monkeypatch.setattr(photographs, "load_teacher", lambda: teacher)
    for index in range(12):
        folder = tmp_path / "samples" / f"n{index:02}"
        folder.mkdir(parents=True)
        noise = torch.randint(256, (40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.numpy()).save(folder / f"{index}.png")
    return tmp_path


def test_every_way_has_its_rows_and_a_second_run_goes_on(small, capsys, monkeypatch):
    options = [
        "--folder",
        str(small / "samples"),
        "--rows",
        str(small / "rows.json"),
        "--budget",
        "2x",
        "--seconds",
        "5",
    ]
    assert photographs.main(options) == 0
    printed = capsys.readouterr().out
    assert all(way in printed for way in (*photographs.WAYS, *photographs.MEASURED))
    lossless = next(line for line in printed.splitlines() if "| patches " in line)
    assert "100.0" in lossless
    monkeypatch.setattr(photographs, "measure", None)  # nothing is measured again
    assert photographs.main(options) == 0
    assert capsys.readouterr().out.splitlines()[:10] == printed.splitlines()[:10]


def test_pictures_without_their_class_are_refused(small):
    (small / "samples" / "n00" / "0.png").rename(small / "samples" / "n00" / "cat.png")
    with pytest.raises(DataError, match=r"cat\.png is not named by its class"):
        photographs.main(["--folder", str(small / "samples"), "--rows", str(small / "rows.json")])


def test_saved_students_are_judged_on_the_same_pictures(small, capsys):
    student = redistill.transform(photographs.load_teacher(), torch.zeros(photographs.EXAMPLE), "2x", levers="patches")
    student.save(small / "student")
    assert photographs.main(["--folder", str(small / "samples"), "--student", str(small / "student")]) == 0
    assert "100.0" in capsys.readouterr().out
    with pytest.raises(StudentError):
        photographs.main(["--folder", str(small / "samples"), "--student", str(small / "samples")])

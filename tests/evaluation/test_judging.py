"""The denoisers' comparison, on digits and very small runs: what it makes, keeps, and computes anew."""

import json

import pytest
from PIL import Image

from redistill.errors import RedistillError
from redistill.studies.comparison.__main__ import choose_judge, main, read_comparison
from redistill.studies.comparison.making import compare
from redistill.studies.evaluation import evaluating

RUNS = (
    "teacher.model=redistill:ddpm_unet?in_channels=1&width=8&multipliers=[1,2]&blocks=1&attention_levels=[]",
    "teacher.recipe.steps=4",
    "recipe.steps=4",
    "data.test_limit=8",
    "data.validation=0.01",
    "sampling.images=0",
    "run.brief=true",
)


@pytest.fixture
def comparison(tmp_path, extractor):
    path = tmp_path / "comparison.yaml"
    config = {
        "trainer": "comparison",
        "experiment": "digits/ddpm_smoke.yaml",
        "seeds": [0, 1],
        "grids": [{"plans": {"2x": ["student.factors=[2, 1]"]}, "starts": {"teacher": []}, "methods": ["red+mse"]}],
        "evaluation": {
            "images": 640,
            "points": 2,
            "held_out": 4,
            "generation": {"steps": 1},
            "extractor": str(extractor.path),
        },
    }
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def test_teacher_students_and_floor_in_one_table(comparison, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs"
    settings = [word for setting in RUNS for word in ("--set", setting)]
    assert main(["--config", str(comparison), "--folder", str(folder), *settings]) == 0
    table = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert [line[2] for line in lines[2:]] == ["the teacher", "red+mse", "real images"]
    scores = dict(zip(lines[0], lines[3], strict=True))
    assert "±" in scores["FID"]
    assert 0.9 < float(scores["SSIM"].split(" ± ")[0]) <= 1  # after four steps it still is its teacher
    assert dict(zip(lines[0], lines[2], strict=True))["SSIM"] == ""
    assert "DDIM-1, seed 0" in table
    assert (folder / "table.md").read_text() == table
    assert Image.open(folder / "images.png").height > Image.open(folder / "2x-teacher-red+mse/seed-0/images.png").height
    assert (folder / "errors.png").is_file()
    assert main(["--config", str(comparison), "--folder", str(folder), *settings, "--table"]) == 0
    assert capsys.readouterr().out == table

    monkeypatch.setattr(evaluating, "generate", lambda *_: pytest.fail("generated again"))
    assert main(["--config", str(comparison), "--folder", str(folder), *settings]) == 0
    assert capsys.readouterr().out == table
    with pytest.raises(pytest.fail.Exception):
        main(["--config", str(comparison), "--folder", str(folder), *settings, "--set", "evaluation.generation.seed=1"])


def test_what_is_no_key_of_the_comparison_is_set_in_all_runs(comparison, tmp_path):
    config = read_comparison(str(comparison), ["seeds=[7]", "data.root=/data", "evaluation.images=700"])
    assert (config.seeds, config.settings, config.evaluation["images"]) == ((7,), ("data.root=/data",), 700)
    with pytest.raises(RedistillError, match="give one or more"):
        read_comparison(str(comparison), ["seeds=[]"])


def test_a_mistake_in_the_evaluation_is_found_before_anything_is_trained(comparison, tmp_path):
    folder = tmp_path / "runs"
    for mistake, message in (("evaluation.image=700", "image"), ("evaluation.images=100", "640 or more")):
        with pytest.raises(RedistillError, match=message):
            compare(choose_judge(read_comparison(str(comparison), [*RUNS, mistake]), folder))
        assert not folder.exists()

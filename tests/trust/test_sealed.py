"""All that a run needs is in its checkpoints: damage to anything beside them is healed, refused or said."""

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "trainers"))
from small_task import data, equal, loop, network, weights

from redistill.config.settings import RunConfig, TargetsConfig
from redistill.errors import CheckpointError
from redistill.evidence.trust.damages import HARMS
from redistill.trainers.classification import ClassifierTask
from redistill.trainers.folder import RunFolder
from redistill.trainers.loop import Loop
from redistill.trainers.progress import Facts
from redistill.trainers.record import Record

OFTEN = RunConfig(log_every=2, checkpoint_every=4, keep=3)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    made = loop(folder, run=OFTEN)
    return made.run(), weights(made), lines(folder), folder


def lines(folder):
    return [{k: v for k, v in e.items() if k != "images_per_second"} for e in Record(folder).entries()]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    "name", ["best.safetensors", "log.jsonl", "newest", "manifest.json", "state.json", "state.safetensors"]
)
def test_a_harmed_run_goes_on_to_the_bit(straight, tmp_path, name, harm):
    outcome, expected, log, origin = straight
    folder = tmp_path / "run"
    shutil.copytree(origin, folder)
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    path = folder / name if (folder / name).exists() else newest if name == "newest" else newest / name
    if path.is_dir() and harm in ("a bit flipped", "cut in half", "empty", "other bytes"):
        shutil.rmtree(path)
        path.write_bytes(b"no folder")
    HARMS[harm](path)
    made = loop(folder, run=OFTEN)
    if path.is_symlink() and path.parent == folder:
        with pytest.raises(Exception, match="is a link"):
            made.run(resume=True)
        return
    if path.is_dir() and path.parent == folder:
        path.rmdir()
    assert made.run(resume=True) == outcome
    assert equal(weights(made), expected)
    assert lines(folder) == log


def test_the_log_does_not_depend_on_when_checkpoints_are(straight, tmp_path):
    made = loop(tmp_path, run=RunConfig(log_every=2, checkpoint_every=1, keep=3))
    made.run()
    assert lines(tmp_path) == straight[2]


def with_facts(folder, facts):
    from small_task import recipe

    task = ClassifierTask(network(), data(), TargetsConfig())
    return Loop(task, recipe(epochs=1), OFTEN, folder, facts=facts)


def test_another_teacher_or_configuration_is_refused(tmp_path):
    teacher = torch.nn.Linear(2, 2)
    with_facts(tmp_path, Facts.of({"a": 1}, {"teacher": teacher})).run()
    with_facts(tmp_path, Facts.of({"a": 1}, {"teacher": teacher})).run(resume=True)
    with pytest.raises(CheckpointError, match=r"was started otherwise: a \(1, then 2\)"):
        with_facts(tmp_path, Facts.of({"a": 2}, {"teacher": teacher})).run(resume=True)
    with torch.no_grad():
        teacher.weight[0, 0] += 1e-6
    with pytest.raises(CheckpointError, match="weights of teacher are not those"):
        with_facts(tmp_path, Facts.of({"a": 1}, {"teacher": teacher})).run(resume=True)


def test_another_number_of_threads_is_said(tmp_path, caplog):
    with_facts(tmp_path, Facts()).run()
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with caplog.at_level(logging.WARNING):
            with_facts(tmp_path, Facts()).run(resume=True)
    finally:
        torch.set_num_threads(before)
    assert f"other threads ({before}, then {before + 1})" in caplog.text
    assert "up to rounding only" in caplog.text


def test_all_damaged_checkpoints_newer_than_the_one_used_are_gone(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight[3], folder)
    for path in sorted((folder / "checkpoints").iterdir())[1:]:
        (path / "manifest.json").write_text(json.dumps({}))
    made = loop(folder, run=OFTEN)
    assert made.run(resume=True) == straight[0]
    assert len(sorted(RunFolder(folder).checkpoints.iterdir())) == 3

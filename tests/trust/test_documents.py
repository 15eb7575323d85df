"""YAML and JSON from anywhere: plain data within limits, or one error."""

import time

import pytest

from redistill.config.files import load
from redistill.config.settings import ClassifierConfig
from redistill.errors import ConfigError, RedistillError
from redistill.internal.documents import LARGEST, dump_yaml, parse_yaml, read_json, read_yaml


@pytest.mark.parametrize(
    "value", ["1e4", "no", "1:30", "1e-05", "null", "", ".5", "0x1f", "1_0", 1e-5, 1.0, 3, None, True, [1]]
)
def test_what_is_written_is_read_back(value):
    assert parse_yaml(dump_yaml({"a": value}), "here") == {"a": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("1e-4", 1e-4),
        ("010", 10),
        ("0x1f", 31),
        ("true", True),
        ("~", None),
    ],
)
def test_scalars_are_those_of_version_1_2(text, value):
    assert parse_yaml(text, "here") == value


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"b{i}: &{chr(97 + i)} [{','.join(['*' + chr(96 + i)] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100,000 values"),
        ("&a [*a]", "within itself"),
        ("[" * 5000, "nested too deeply"),
        ("{a: 1, a: 2}", "stands twice"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("!!binary aGk=", "not valid YAML"),
        ("x" * (LARGEST + 1), "longer than"),
        ("\x00", "not valid YAML"),
    ],
)
def test_what_is_no_document_of_ours_is_refused_at_once(text, words):
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=words):
        parse_yaml(text, "here")
    assert time.perf_counter() - started < 5


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("é".encode("latin-1"))
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name, words in (("latin.yaml", "UTF-8"), ("folder.yaml", "cannot be read"), ("absent.yaml", "cannot be read")):
        with pytest.raises(RedistillError, match=words):
            read_yaml(tmp_path / name)
    with pytest.raises(RedistillError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")


def test_a_configuration_is_not_its_own_base(tmp_path):
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text(f"base: {b}")
    b.write_text(f"base: {a}")
    with pytest.raises(ConfigError, match="names itself as its base"):
        load(ClassifierConfig, str(a))


@pytest.mark.parametrize(
    "assignment",
    [
        *("recipe.steps=-3", "recipe.steps=0", "data.train_limit=-1", "distillation.task=.nan", "recipe.batch_size=0"),
        *(
            "teachers={../../x: {}}",
            "teachers={student: {}}",
            "student.factors=[1000000]",
            "recipe.ema=1",
            "data.std=[0]",
        ),
        *(
            "recipe.optimizer.betas=[0.9]",
            "run.keep=1",
            "distillation.methods={kd: {weight: .inf}}",
            "data.image_size=0",
        ),
        *("distillation.methods={kd: {temperature: hot}}", "recipe.epochs=" + "9" * 16000, "run.precision=false"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_name(assignment):
    from redistill.distillation import Distillation

    with pytest.raises(ConfigError) as caught:
        Distillation(load(ClassifierConfig, "digits/smoke.yaml", [assignment]).distillation.methods)
    assert assignment.partition("=")[0].split(".")[-1] in str(caught.value)
    assert len(str(caught.value)) < 500

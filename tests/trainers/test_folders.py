"""Folders of pictures: every mode read right, damaged ones named, layouts refused in one line, decoded once."""

import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from redistill.config.settings import DataConfig
from redistill.data.datasets import open_data, split_by_class
from redistill.data.pictures import UnreadablePictureError, decode
from redistill.errors import ConfigError, DataError, RedistillError
from redistill.trainers.classifier import main


def draw(path, size=(12, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            for index in range(count):
                draw(tmp_path / "pets" / part / label / f"{index}.png", seed=index)
    return tmp_path / "pets"


@pytest.fixture
def config(root, tmp_path):
    return DataConfig(name="image_folder", root=str(root), image_size=8, cache=str(tmp_path / "cache"))


# --- single pictures


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert torch.equal(decode(tmp_path / name, 1)[0], torch.arange(256, dtype=torch.uint8).view(16, 16))
        assert torch.equal(decode(tmp_path / name, 3)[2], decode(tmp_path / name, 1)[0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_show_the_same_picture(tmp_path, mode):
    half = Image.new("RGB", (8, 4), (250, 250, 250))
    half.paste((5, 5, 5), (0, 0, 4, 4))
    half.convert(mode).save(tmp_path / "half.tif")
    for channels in (1, 3):
        image = decode(tmp_path / "half.tif", channels)
        assert image.shape == (channels, 4, 8)
        assert image[:, :, :4].max() < 20
        assert image[:, :, 4:].min() > 235


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, orientation):
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # transpositions that a viewer turns back
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(decode(tmp_path / "turned.png", 1)[0], torch.from_numpy(np.array(upright)))


def test_values_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 1 << 20, dtype=np.int32)).save(tmp_path / "wide.tif")
    for name in ("float.tif", "wide.tif"):
        with pytest.raises(UnreadablePictureError, match="save it as 8 or 16 bits"):
            decode(tmp_path / name)


# --- the cache


def test_pictures_are_decoded_once_and_anew_where_files_change(config, root, monkeypatch):
    before = open_data(config, 0)
    monkeypatch.setattr("redistill.data.cache.decode", lambda *arguments: pytest.fail("decoded again"))
    again = open_data(config, 0)
    assert torch.equal(before.test[3]["inputs"], again.test[3]["inputs"])
    monkeypatch.undo()
    draw(root / "test" / "dog" / "1.png", seed=99)
    os.utime(root / "test" / "dog" / "1.png", ns=(1, 1))
    changed = open_data(config, 0)
    assert not torch.equal(changed.test[3]["inputs"], again.test[3]["inputs"])
    assert len(list((root.parent / "cache").glob("*/*/pixels.bin"))) == 2  # of train and of test, no older state


def test_the_cache_shows_what_the_files_do(config, root):
    draw(root / "train" / "cat" / "wide.png", (30, 9))
    cached, direct, small = (
        open_data(replace(config, **change), 0) for change in ({}, {"cache": "none"}, {"cache_limit": 1e-9})
    )
    for index in range(len(cached.train)):
        for other in (direct, small):
            assert torch.equal(cached.train[index]["inputs"], other.train[index]["inputs"])


def test_a_cache_that_cannot_be_written_is_done_without(config, root, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    data = open_data(replace(config, cache=str(tmp_path / "file")), 0)
    assert data.train[0]["inputs"].shape == (3, 8, 8)
    assert "data.cache" in caplog.text


def test_a_picture_changed_behind_its_date_is_decoded_anew(config, root):
    path = root / "test" / "dog" / "1.png"
    state, before = path.stat(), open_data(config, 0).test[3]["inputs"]
    draw(path, seed=99)
    path.write_bytes(path.read_bytes()[: state.st_size].ljust(state.st_size, b"\0"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert not torch.equal(open_data(config, 0).test[3]["inputs"], before)


@pytest.mark.parametrize(("name", "content"), [("pixels.bin", b""), ("index.json", b"{"), ("index.json", b"{}")])
def test_a_damaged_cache_is_made_anew(config, root, name, content):
    before = open_data(config, 0).test[3]["inputs"]
    for path in (root.parent / "cache").glob(f"*/*/{name}"):
        path.write_bytes(content)
    assert torch.equal(open_data(config, 0).test[3]["inputs"], before)
    assert all(path.stat().st_size > 9 for path in (root.parent / "cache").glob(f"*/*/{name}"))


# --- damaged pictures


def test_a_damaged_picture_is_named_and_counted_or_skipped(config, root, caplog):
    damaged = root / "test" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:90])
    for _ in range(2):  # the second time from what is remembered
        with pytest.raises(DataError, match=r"1 of 4 pictures cannot be read: .*dog/1\.png \(.*data\.damaged=skip"):
            open_data(config, 0)
    with caplog.at_level(logging.WARNING, logger="redistill"):
        data = open_data(replace(config, damaged="skip"), 0)
    assert "dog/1.png" in caplog.text
    assert data.test.labels.tolist() == [0, 0, 1]
    assert torch.equal(data.test[2]["inputs"], open_data(replace(config, damaged="skip"), 0).test[2]["inputs"])
    (root / "test" / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"dog holds no picture that can be read"):
        open_data(replace(config, damaged="skip"), 0)


def test_without_a_cache_it_is_named_when_it_is_reached(config, root):
    damaged = root / "test" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:90])
    data = open_data(replace(config, cache="none"), 0)
    with pytest.raises(DataError, match=r"dog/1\.png cannot be read"):
        data.test[3]
    skipping = open_data(replace(config, cache="none", damaged="skip"), 0)
    assert skipping.test.labels.tolist() == [0, 0, 1]


# --- layouts


def test_hidden_folders_circles_and_odd_names_are_gone_through(config, root):
    counted = len(open_data(config, 0).train)
    draw(root / "train" / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    os.symlink(root / "train" / "dog", root / "train" / "dog" / "again")
    os.mkfifo(root / "train" / "dog" / "pipe.png")
    os.rename(root / "train" / "dog" / "0.png", os.fsencode(root / "train" / "dog") + b"/\xff.png")
    assert len(open_data(config, 0).train) == counted
    for part in ("train", "test"):
        (root / part).rename(root / part.upper())
    assert len(open_data(config, 0).train) == counted


def test_a_folder_that_may_not_be_read_is_named(config, root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"train/cat cannot be read as a folder \(Permission denied\)"):
        open_data(config, 0)


def test_grey_is_grey(config):
    assert open_data(replace(config, channels=1), 0).train[0]["inputs"].shape == (1, 8, 8)
    with pytest.raises(ConfigError, match=r"data\.channels=4"):
        open_data(replace(config, channels=4), 0)


def test_lab_is_made_grey_too(tmp_path):
    Image.new("LAB", (4, 4), (200, 128, 128)).save(tmp_path / "lab.tif")
    assert decode(tmp_path / "lab.tif", 1).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train" / "eel").mkdir(), "test lacks"),
        (lambda root: draw(root / "test" / "eel" / "0.png"), "has a class 'eel' that"),
        (lambda root: [(root / p / "eel").mkdir() for p in ("train", "test")], "has no picture of a class 'eel'"),
        (lambda root: (root / "test").rename(root / "held_out"), "has no folder 'test' or 'val'"),
        (lambda root: (root / "train").rename(root / "pictures"), "has a folder 'test' and none 'train'"),
        (lambda root: os.symlink("nowhere.png", root / "train" / "cat" / "x.png"), "1 of 13 pictures cannot be read"),
    ],
)
def test_folders_that_do_not_fit_are_refused_in_a_line(config, root, change, message):
    change(root)
    with pytest.raises(DataError) as caught:
        open_data(config, 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_single_picture_of_a_class_is_trained_on(config, root, caplog):
    held_out, rest = split_by_class(torch.tensor([0] * 20 + [1]), 0.1, 0)
    assert 20 in rest.tolist()
    assert len(held_out) == 2
    for part in ("train", "test"):
        draw(root / part / "eel" / "0.png")
    with caplog.at_level(logging.WARNING, logger="redistill"):
        data = open_data(config, 0)
    assert "1 classes have one training image and none for validation: eel" in caplog.text
    assert set(data.train.labels.tolist()) == {0, 1, 2}


# --- pictures without classes


@pytest.fixture
def command(tmp_path, config):
    teacher = tmp_path / "teacher.pt"
    net = "redistill:cifar_resnet?depth=8&width_mult=0.5&num_classes=7"
    from redistill.models import load_model

    torch.manual_seed(0)
    torch.save({"state_dict": {f"module.{k}": v for k, v in load_model(net).state_dict().items()}}, teacher)
    settings = {
        "data.name": "image_folder", "data.root": config.root, "data.cache": config.cache, "data.image_size": 16,
        "teacher.model": net, "teacher.recipe": "null", "teacher.weights": teacher, "student.budget": "null",
        "student.factors": "null", "distillation.methods": "none", "recipe.epochs": 1, "recipe.batch_size": 4,
        "run.folder": tmp_path / "run",
    }  # fmt: skip

    def call(**changes):
        chosen = {**settings, **{key.replace("__", "."): value for key, value in changes.items()}}
        return main(["--config", "digits/smoke.yaml", *(f"--set={key}={value}" for key, value in chosen.items())])

    return call


def test_pictures_without_classes_are_learnt_from_the_teacher_alone(command, root, tmp_path, capsys):
    loose = tmp_path / "loose"
    for index in range(24):
        draw(loose / f"day-{index % 3}" / f"{index}.png", (20, 20), seed=index)
    assert command(data__root=loose) == 2
    assert "distillation.task=0" in capsys.readouterr().err
    assert command(data__root=loose, distillation__task=0, teacher__weights="null", distillation__methods="kd") == 2
    assert "give a trained teacher.weights" in capsys.readouterr().err
    settings = {"data__root": loose, "distillation__task": 0}
    assert command(**settings, student__budget="2x", student__start="teacher", distillation__methods="kd") == 0
    assert "test agreement" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["teacher"]["test"]["top1"] == 100.0
    assert 0 <= summary["last"]["test"]["top1"] <= 100


def test_held_out_pictures_without_classes_are_needed_where_their_folder_is_there(config, tmp_path):
    for index in range(8):
        draw(tmp_path / "loose" / "train" / f"{index}.png", seed=index)
    (tmp_path / "loose" / "val").mkdir()
    with pytest.raises(DataError, match="val holds no pictures"):
        open_data(replace(config, root=str(tmp_path / "loose")), 0)


def test_one_class_is_refused_by_a_classifier(command, root, capsys):
    for part in ("train", "test"):
        (root / part / "dog").rename(root.parent / f"{part}-dog")
    assert command() == 2
    said = capsys.readouterr().err
    assert "has one class" in said
    assert said.count("\n") == 1


def test_every_refusal_is_one_of_ours():
    assert issubclass(DataError, RedistillError)

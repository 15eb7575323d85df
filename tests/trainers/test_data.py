"""Data sets: splits, orders, augmentation, and what is said when files are missing."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from redistill.config.settings import AugmentationConfig, DataConfig
from redistill.data.datasets import EpochOrder, open_data, split_by_class
from redistill.data.sources import SOURCES, Images, Source
from redistill.errors import ConfigError, DataError


def test_digits_need_no_files():
    data = open_data(DataConfig(), seed=0)
    assert data.classes == 10
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    item = data.train[0]
    assert item["inputs"].shape == (3, 32, 32)
    assert item["inputs"].dtype == torch.float32
    assert -1 <= item["inputs"].min() <= item["inputs"].max() <= 1
    assert data.training_set.labels.bincount().min() > 100


def test_validation_is_a_share_of_each_class_and_disjoint():
    labels = torch.tensor([0] * 30 + [1] * 10)
    held_out, rest = split_by_class(labels, 0.2, seed=0)
    assert labels[held_out].bincount().tolist() == [6, 2]
    assert sorted([*held_out.tolist(), *rest.tolist()]) == list(range(40))
    again, _ = split_by_class(labels, 0.2, seed=0)
    other, _ = split_by_class(labels, 0.2, seed=1)
    assert torch.equal(held_out, again)
    assert not torch.equal(held_out, other)


def test_limits_are_even_over_the_classes():
    data = open_data(DataConfig(train_limit=100, test_limit=50), seed=0)
    assert data.train.labels.bincount().tolist() == [10] * 10
    assert len(data.test) == 50
    with pytest.raises(DataError, match=r"data\.train_limit=9999: only"):
        open_data(DataConfig(train_limit=9999), seed=0)
    with pytest.raises(DataError, match=r"data\.train_limit=9: there are 10 classes"):
        open_data(DataConfig(train_limit=9), seed=0)


def in_memory(channels):
    count = 12
    images = Images(lambda index: torch.full((channels, 4, 4), index, dtype=torch.uint8), torch.arange(count) % 2)
    return Source(images, images, ("a", "b"))


def test_images_have_the_channels_that_are_set():
    config = DataConfig(image_size=4)
    assert open_data(replace(config, channels=1), 0, in_memory(3)).train[0]["inputs"].shape == (1, 4, 4)
    assert open_data(replace(config, channels=4), 0, in_memory(4)).train[0]["inputs"].shape == (4, 4, 4)
    with pytest.raises(DataError, match=r"images have 4 channels, data\.channels is 3; set it to 4"):
        _ = open_data(config, 0, in_memory(4)).train[0]
    for change in ({"channels": 1, "mean": (0.1, 0.2, 0.3)}, {"channels": 0}):
        with pytest.raises(ConfigError, match=r"data\.(mean|channels)="):
            DataConfig(**change)


def test_orders_are_permutations_that_can_be_entered_anywhere():
    order = EpochOrder(23, 5, seed=0)
    whole = list(order)
    assert len(whole) == len(order) == 20
    assert len({index for _, index in whole}) == 20
    order.go_to(0, 2, 9)
    assert list(order) == whole[10:]
    order.go_to(1, 0, 1)
    assert [epoch for epoch, _ in order] == [1] * 5
    assert [index for _, index in order] != [index for _, index in whole[:5]]


@pytest.mark.parametrize(
    "augmentation",
    [
        AugmentationConfig(crop="random_resized", flip=True),
        AugmentationConfig(crop="padded", policy="trivial", erasing=0.5),
        AugmentationConfig(policy="randaugment"),
        AugmentationConfig(policy="autoaugment"),
    ],
)
def test_augmentations(augmentation):
    data = open_data(DataConfig(augmentation=augmentation), seed=0)
    first, again, later = data.train[(0, 3)], data.train[(0, 3)], data.train[(1, 3)]
    assert first["inputs"].shape == (3, 32, 32)
    assert torch.equal(first["inputs"], again["inputs"])
    assert not torch.equal(first["inputs"], later["inputs"]) or augmentation.policy in ("randaugment", "autoaugment")


def test_drawing_an_image_leaves_the_generator_as_it_was():
    data = open_data(DataConfig(augmentation=AugmentationConfig(crop="padded")), seed=0)
    state = torch.get_rng_state()
    data.train[(0, 1)]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"digits", "keywords"}))
def test_missing_files_are_said_where_and_how(name, tmp_path):
    with pytest.raises(DataError) as caught:
        open_data(DataConfig(name=name, root=str(tmp_path)), seed=0)
    assert str(tmp_path) in str(caught.value)
    assert "data.root" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_data_set():
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        open_data(DataConfig(name="cifar_10"), seed=0)


def idx(array):
    sizes = struct.pack(f">{array.ndim}i", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def test_fashion_mnist_packed_or_not(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = (np.arange(40) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    data = open_data(
        DataConfig(name="fashion_mnist", root=str(tmp_path), image_size=28, mean=(0.0,), std=(1.0,)), seed=0
    )
    torch.testing.assert_close(data.test[7]["inputs"][1] * 255, torch.from_numpy(pixels[7]).float())
    assert data.test[7]["labels"] == 7
    for name, content in (("t10k-labels-idx1-ubyte", idx(labels)[:30]), ("t10k-images-idx3-ubyte.gz", b"no gzip")):
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is damaged"):
            open_data(DataConfig(name="fashion_mnist", root=str(tmp_path), image_size=28), seed=0)


def test_an_image_folder(tmp_path):
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for index in range(4):
                Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    data = open_data(DataConfig(name="image_folder", root=str(tmp_path), image_size=16, validation=0.25), seed=0)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (6, 2, 8, 2)
    assert data.train[0]["inputs"].shape == (3, 16, 16)


def test_a_batch_is_made_of_the_same_images_as_are_asked_for_one_by_one():
    augmentation = AugmentationConfig(crop="padded", flip=True, erasing=0.5)
    data = open_data(DataConfig(augmentation=augmentation, strong=augmentation), seed=0)
    keys = [(2, 5), (2, 0), (3, 5)]
    together, alone = data.train.__getitems__(keys), [data.train[key] for key in keys]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        assert torch.equal(one["strong"], other["strong"])
        assert (one["labels"], one["indices"]) == (other["labels"], other["indices"])
    assert not torch.equal(together[0]["inputs"], together[2]["inputs"])


def test_faces_with_and_without_an_attribute(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CelebA._check_integrity", lambda self: True)
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06}.jpg" for number in range(1, 9)]
    for name in names:
        Image.new("RGB", (178, 218), (200, 100, 50)).save(root / "img_align_celeba" / name)
    splits = [0, 0, 0, 0, 0, 1, 2, 2]

    def write(file, rows, head=""):
        (root / file).write_text(head + "\n".join(f"{name} {row}" for name, row in zip(names, rows, strict=True)))

    write("list_eval_partition.txt", splits)
    write("identity_CelebA.txt", splits)
    for file in ("list_attr_celeba.txt", "list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        write(file, ["1 -1", "-1 1"] * 4, head="8\nSmiling Young\n")
    config = DataConfig(name="celeba", root=str(tmp_path), image_size=16, validation=0.2)
    data = open_data(config, seed=0)
    assert (len(data.train) + len(data.validation), len(data.test), data.classes) == (5, 2, 1)
    assert data.train[0]["inputs"].shape == (3, 16, 16)
    divided = open_data(replace(config, attribute="Smiling"), seed=0)
    assert divided.classes == 2
    assert divided.test.labels.tolist() == [1, 0]
    with pytest.raises(ConfigError, match="did you mean 'Smiling'"):
        open_data(replace(config, attribute="Smile"), seed=0)


def colours(config):
    pictures = [Image.new(mode, (8, 8), value) for mode, value in (("RGB", (255, 0, 0)), ("L", 128))]
    pairs = [(pictures[i % 2], i % 2) for i in range(20)]
    return Source.from_datasets(pairs, pairs)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(4, 3, 2, 2), [1, 2, 3, -1], r"train has labels from -1 to 3, and there are 4 classes"),
        (torch.zeros(4, 3, 2, 2), np.eye(4), r"is no pair of an image and a number"),
        (torch.zeros(4, 2, 2), [0, 0, 1, 1], r"an image of shape 2x2"),
        (torch.full((4, 3, 2, 2), 255.0), [0, 0, 1, 1], r"values from 255 to 255; give bytes, or floats in \[0, 1\]"),
        (torch.zeros(4, 3, 2, 2, dtype=torch.int64), [0, 0, 1, 1], r"of torch.int64; give bytes, or floats"),
        (np.zeros((4, 3, 2, 2)), [0, 0, 1, 1], r"a ndarray; give PIL's images, or tensors"),
        (torch.zeros(0, 3, 2, 2), [], r"train holds no images"),
    ],
)
def test_a_data_set_that_is_none_is_refused_in_a_line(images, labels, words):
    pairs = list(zip(images, labels, strict=True))
    with pytest.raises(DataError, match=words):
        _ = open_data(DataConfig(image_size=2), 0, Source.from_datasets(pairs, pairs)).train[0]


def test_labels_fit_the_classes_and_the_images():
    pairs = [(torch.zeros(3, 2, 2), index % 3) for index in range(9)]
    with pytest.raises(DataError, match="train has labels from 0 to 2, and there are 2 classes"):
        Source.from_datasets(pairs, pairs, ("a", "b"))
    targeted = type("Targeted", (list,), {"targets": [0, 1]})(pairs)
    with pytest.raises(DataError, match="2 targets for 9 images"):
        Source.from_datasets(targeted, pairs)


def test_sixteen_bits_of_ones_own_are_scaled():
    deep = Image.fromarray(np.full((4, 4), 128 * 257, dtype=np.uint16))
    source = Source.from_datasets([(deep, 0), (deep, 1)] * 2, [(deep, 0)])
    assert source.train.get(0).unique().tolist() == [128]


def test_classes_without_training_images_are_named(caplog):
    pairs = [(torch.zeros(3, 2, 2), label) for label in (0, 0, 2, 2)]
    with caplog.at_level("WARNING", logger="redistill"):
        open_data(DataConfig(image_size=2), 0, Source.from_datasets(pairs, pairs))
    assert "1 classes have no training image: 1" in caplog.text
    assert "validation" not in caplog.text


def no_source(config):
    return []


def test_a_data_set_of_ones_own_by_its_path():
    config = DataConfig(name=f"{__name__}:colours", image_size=8, mean=(0.0,), std=(1.0,))
    data = open_data(config, seed=0)
    assert (data.classes, len(data.train), len(data.test)) == (2, 18, 20)
    red, grey = data.test[0], data.test[1]
    assert torch.equal(red["inputs"].mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    assert (grey["inputs"].shape, grey["labels"]) == ((3, 8, 8), 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [("no_source", "gives a list; it must give a redistill.data.Source"), ("colour", "did you mean 'colours'")],
)
def test_what_is_no_data_set_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        open_data(DataConfig(name=f"{__name__}:{name}"), seed=0)

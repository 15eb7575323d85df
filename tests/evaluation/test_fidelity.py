"""Scores of images that are real, disturbed and noise; and what is refused because it would mislead."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.linalg import sqrtm

from redistill.config.settings import DataConfig
from redistill.errors import EvaluationError
from redistill.studies.evaluation import features
from redistill.studies.evaluation.features import DomainFeatures, open_extractor, train_extractor
from redistill.studies.evaluation.fidelity import score
from redistill.studies.evaluation.real_images import held_out, open_real, to_pixels

DIGITS = DataConfig(image_size=16, channels=1)


@pytest.fixture(scope="module")
def real():
    return open_real(DIGITS, "train", 700)


def test_scores_order_what_is_real_disturbed_and_noise(real, extractor):
    torch.manual_seed(0)
    itself = score(real.reference, real.reference, extractor)
    floor = score(*real.floor, extractor)
    disturbed = (real.floor[0].float() + 60 * torch.randn(real.floor[0].shape)).clamp(0, 255).to(torch.uint8)
    near = score(disturbed, real.reference, extractor)
    noise = score(torch.randint_like(real.reference, 256), real.reference, extractor)
    assert abs(itself.fid) < 1e-3
    assert itself.precision == itself.recall == 1
    assert itself.fid < floor.fid < near.fid < noise.fid
    assert abs(floor.kid) < near.kid < noise.kid
    assert max(near.precision, noise.precision) < floor.precision  # which of them is nearer the few real ones is chance
    assert noise.recall < near.recall < floor.recall
    assert noise.inception_score < floor.inception_score <= 10
    assert (itself.images, itself.reference) == (700, 700)


def test_fid_is_that_of_the_formula(real, extractor):
    network = DomainFeatures("x", ["features"], str(extractor.path)).eval()
    with torch.no_grad():
        first, second = (network(pixels)[0].double().numpy() for pixels in real.floor)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = sqrtm(covariances[0] @ covariances[1]).real
    distance = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert score(*real.floor, extractor).fid == pytest.approx(distance, rel=1e-3)


def test_scores_follow_the_images_and_the_weights_not_a_cache(real, extractor, tmp_path):
    first = score(*real.floor, extractor)
    assert score(*real.floor, extractor) == first
    assert score(torch.flip(real.floor[0], (2,)), real.reference, extractor).fid > first.fid
    other = load_file(extractor.path)
    other["trunk.0.weight"] *= 1.5
    features.save_network(tmp_path / "other.safetensors", other, {"data": "digits", "image_size": 16, "top1": 0.0})
    changed = open_extractor(str(tmp_path / "other.safetensors"), DIGITS)
    assert changed.digest != extractor.digest
    assert score(*real.floor, changed).fid != first.fid


def test_too_few_images_and_images_that_differ_are_refused(real, extractor):
    with pytest.raises(EvaluationError, match=r"639 images are too few for an extractor of 64 features.*-n 640"):
        score(real.reference[:639], real.reference, extractor)
    with pytest.raises(EvaluationError, match="1x8x8 uint8, the others 1x16x16"):
        score(real.reference[:, :, ::2, ::2], real.reference, extractor)
    with pytest.raises(EvaluationError, match="uint8"):
        score(real.reference.float(), real.reference, extractor)
    colours = real.reference.expand(-1, 3, -1, -1)
    with pytest.raises(EvaluationError, match="3 channels"):
        score(colours, colours, extractor)


def test_inception_needs_its_own_weights_and_many_images(real, extractor, tmp_path):
    with pytest.raises(EvaluationError, match="no extractor weights at"):
        open_extractor(str(tmp_path / "missing.pth"), DIGITS)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(EvaluationError, match="does not hold torch-fidelity's Inception weights"):
        open_extractor(str(tmp_path / "wrong.pth"), DIGITS)
    (tmp_path / "wrong.safetensors").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match="not an extractor that was trained here"):
        open_extractor(str(tmp_path / "wrong.safetensors"), DIGITS)
    torch.save({"Mixed_7c.branch_pool.conv.weight": torch.zeros(1)}, tmp_path / "inception.pth")
    inception = open_extractor(str(tmp_path / "inception.pth"), DIGITS)
    with pytest.raises(EvaluationError, match="20480 or more"):
        score(real.reference, real.reference, inception)


def test_an_extractor_is_trained_once_for_each_data_set(extractor, extractors, short_recipe, monkeypatch):
    assert "digits at 16 px (64 features, top-1" in str(extractor)
    assert extractor.channels == 1
    monkeypatch.setattr(features, "train", lambda *_, **__: pytest.fail("trained again"))
    assert train_extractor(DIGITS, short_recipe, extractors) == extractor.path
    with pytest.raises(pytest.fail.Exception):
        train_extractor(replace(DIGITS, image_size=8), short_recipe, extractors)


def test_a_data_set_of_one_class_trains_no_extractor(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "face").mkdir(parents=True)
        Image.new("L", (16, 16)).save(tmp_path / split / "face" / "0.png")
    data = DataConfig(name="image_folder", root=str(tmp_path), image_size=16)
    with pytest.raises(EvaluationError, match="has one class"):
        open_extractor(None, data, root=tmp_path / "extractors")
    assert not (tmp_path / "extractors").exists()


def test_reference_and_floor_are_disjoint(real):
    everything = torch.cat([real.reference, real.floor[0]]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything) == 1400
    assert real.floor_description == "700 others of train"
    assert open_real(DIGITS, "test", 300, 60).floor_description == "300 others of test"
    other = open_real(DIGITS, "test", 360)
    assert (other.description, other.floor_description) == ("digits test, 360 images", "360 of train")
    halves = open_real(DIGITS, "train", 1437)
    assert halves.floor_description == "halves of train, 718 images each"
    assert [len(half) for half in halves.floor] == [718, 718]
    with pytest.raises(EvaluationError, match="has 1437 images, not 2000"):
        open_real(DIGITS, "train", 2000)


def test_pixels_are_what_the_networks_see():
    images = held_out(DIGITS, 50)
    assert images.shape == (50, 1, 16, 16)
    assert images.min() == -1
    pixels = to_pixels(images)
    assert (pixels.float() / 127.5 - 1 - images).abs().max() <= 1 / 255
    assert to_pixels(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]

import torch

import redistill
from redistill.config.settings import DataConfig
from redistill.data.keywords import WORDS, words
from redistill.data.sources import open_source
from redistill.models import load_model


def test_words_are_the_same_at_each_call_and_other_words_in_the_test_set():
    first, labels = words("train", 2)
    assert (first.shape, first.dtype) == ((2 * len(WORDS), 1, 32, 32), torch.uint8)
    assert torch.bincount(labels).tolist() == [2] * len(WORDS)
    assert torch.equal(first, words("train", 2)[0])
    assert not torch.equal(first, words("test", 2)[0])
    assert first.float().std() > 20  # neither black nor white


def test_keywords_are_a_data_set():
    source = open_source(DataConfig(name="keywords"))
    assert (len(source.train), len(source.test), tuple(source.classes)) == (1600, 400, WORDS)


def test_the_network_of_keyword_spotting_is_pooled_along_each_axis():
    network, x = load_model("redistill:ds_cnn?width=16", "random"), torch.randn(1, 1, 32, 32)
    assert network.blocks(network.stem(x)).shape == (1, 16, 8, 16)
    student = redistill.transform(network, x, budget="4x").eval()
    assert student.plan.peak_bytes * 4 <= student.plan.teacher_bytes
    assert student(x).shape == network(x).shape == (1, 8)
    whole = redistill.transform(network, x, factors=[1] * len(student.plan.factors), taps="none").eval()
    assert torch.allclose(whole(x), network(x), atol=1e-5)

"""Whatever is killed goes on to the same bits, and nothing is left half-written; the evidence kills many more."""

import multiprocessing

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from redistill.evidence.trust.kills import Classifier, Export, Saving, kill, kill_works

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="processes part from a server"
)


def test_what_is_written_is_whole_or_not_there(tmp_path):
    for work in (Saving(), Export()):
        folder = tmp_path / type(work).__name__
        folder.mkdir()
        assert work.finish(folder)
        kill(work.begin(folder))
        assert work.fault(folder) is None
        assert work.outcome(folder)


def test_a_process_that_has_run_backward_on_threads_can_begin_work(tmp_path):
    weight = torch.ones(3, requires_grad=True)

    def nested(x, depth):
        return checkpoint(nested, x, depth - 1, use_reentrant=True) if depth else x * weight

    nested(weight, 70).sum().backward()  # deeper than one thread goes: autograd starts more
    folder = tmp_path / "classifier"
    assert Classifier().finish(folder)
    assert Classifier().outcome(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "transform", "export"])
def test_kills_at_random_moments(name):
    toll = kill_works([name], kills=4, seed=3)[name]
    assert toll.kills == 4
    assert toll.faults == []

"""Whatever is killed goes on to the same bits, and nothing is left half-written; the evidence kills many more."""

import os
import signal

import pytest

from redistill.evidence.trust.kills import Export, Saving, kill_works

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def test_what_is_written_is_whole_or_not_there(tmp_path):
    for work in (Saving(), Export()):
        folder = tmp_path / type(work).__name__
        folder.mkdir()
        assert work.finish(folder)
        child = work.begin(folder)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert work.fault(folder) is None
        assert work.outcome(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "transform", "export"])
def test_kills_at_random_moments(name):
    toll = kill_works([name], kills=4, seed=3)[name]
    assert toll.kills == 4
    assert toll.faults == []

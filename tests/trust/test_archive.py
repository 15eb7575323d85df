"""An int8 file of a stranger's: torch is only shown what is tensors and known operators."""

import pytest

from redistill.errors import QuantizationError
from redistill.evidence.trust.strangers import make_archives, open_strangers

pytest.importorskip("executorch")
pytest.importorskip("torchao")
from redistill.quantization.files import load_program

HARMLESS = {"unchanged", "a guard", "legacy weights"}
"""What is left out of the archive that torch is shown, or was nothing to begin with."""


def test_every_way_to_run_code_is_closed(tmp_path):
    mark, refused = tmp_path / "was-here", {}
    for name, path in make_archives(tmp_path, f"touch {mark}"):
        try:
            load_program(path)
        except QuantizationError as error:
            refused[name] = str(error)
        assert not mark.exists(), name
    assert not HARMLESS & refused.keys()
    assert len(refused) == 7
    assert "pickled" in refused["pickled weights"]
    assert "torch.hub.load is not known" in refused["another operator"]
    assert "no arithmetic" in refused["a size"]


def test_no_file_of_a_stranger_runs_code(tmp_path):
    opened = open_strangers(tmp_path)
    assert opened.tried > 80
    assert opened.ran == []
    assert opened.faults == []

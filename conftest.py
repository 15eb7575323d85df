"""What tests and doctests share: one thread each, what is not collected, and which tests are quick."""

import os

# The tests run in several processes, one thread each; those they start must sum in the same order.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)

collect_ignore = ["redistill/transform.py"]  # an import by this name is the function, not a module

QUICK = {
    "test_budget", "test_combination", "test_config", "test_diffusion", "test_distiller", "test_memory", "test_methods",
    "test_optimizers", "test_packing", "test_passes", "test_stages", "test_weights",
}  # fmt: skip
"""Test files of about a second, which together touch planning, passes, memory, methods and settings."""


@pytest.fixture(autouse=True)
def _doctests_have_a_folder_of_their_own(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a docstring's example saves is gone afterwards."""
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("doctest"))
        torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick files, for ``pytest -m quick`` while one works."""
    for item in items:
        if item.path.stem in QUICK and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)

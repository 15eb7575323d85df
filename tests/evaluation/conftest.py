from dataclasses import replace

import pytest

from redistill.config.settings import DataConfig
from redistill.studies.evaluation.features import RECIPE, open_extractor

DIGITS = DataConfig(image_size=16, channels=1)


@pytest.fixture(scope="session")
def extractors(tmp_path_factory):
    """The folder in which the small extractor of digits is found once it is trained."""
    return tmp_path_factory.mktemp("extractors")


@pytest.fixture(scope="session")
def short_recipe():
    return replace(RECIPE, steps=60)


@pytest.fixture(scope="session")
def extractor(extractors, short_recipe):
    return open_extractor(None, DIGITS, short_recipe, extractors)

"""Data: images from folders and data sets, their order and their augmentation."""

from redistill.data.datasets import DataSets, open_data
from redistill.data.sources import Images, Source

__all__ = ["DataSets", "Images", "Source", "open_data"]

"""Train on data of one's own: any two map-style data sets of (image, label) pairs will do.

From the command line: PYTHONPATH=examples redistill train --trust --config examples/own_data.yaml
"""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from redistill.config.settings import DataConfig
from redistill.data import Source
from redistill.trainers.classifier import main


class Shapes(Dataset[tuple[Tensor, int]]):
    """Horizontal bars, vertical bars and crosses, 3x16x16."""

    classes = ("horizontal", "vertical", "cross")

    def __len__(self) -> int:
        return 600

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, kind, bar = torch.rand(3, 16, 16) / 4, index % 3, slice(index // 3 % 14, index // 3 % 14 + 2)
        if kind != 1:
            image[:, bar] = 1
        if kind != 0:
            image[:, :, bar] = 1
        return image, kind


def open_shapes(config: DataConfig) -> Source:
    """What data.name names."""
    return Source.from_datasets(train=Shapes(), test=Shapes())


if __name__ == "__main__":
    raise SystemExit(main(["--config", __file__.replace(".py", ".yaml"), "--trust", "--set", "run.folder=shapes"]))

"""Distil a network with weights of one's own on a folder of pictures, one sub-folder a class.

The same from the command line, once the weights and the folder are there: redistill train --set data.name=image_folder
--set data.root=pictures --set "teacher.model=torchvision:resnet18?num_classes=3" --set teacher.weights=teacher.pth ...
"""

from pathlib import Path

import digits
import torch
from torchvision.transforms.functional import to_pil_image

from redistill.models import load_model
from redistill.trainers.classifier import main

MODEL = "torchvision:resnet18?num_classes=3"


def write_pictures(root: Path, count: int) -> None:
    """Write noisy pictures that are mostly blue, green or red."""
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = torch.rand(3, 48, 64) / 2
            pixels[channel] += 0.3
            to_pil_image(pixels).save(root / name / f"{number}.png")


if __name__ == "__main__":
    write_pictures(Path("pictures/train"), 24)
    write_pictures(Path("pictures/test"), 6)
    images, labels = torch.rand(96, 3, 32, 32) - 0.5, torch.arange(96) % 3
    images[range(96), 2 - labels] += 0.6
    torch.save(digits.train(load_model(MODEL, "random"), images, labels).state_dict(), "teacher.pth")
    data = ["data.name=image_folder", "data.root=pictures", "data.image_size=64", "data.cache=none"]
    teacher = [f"teacher.model={MODEL}", "teacher.weights=teacher.pth", "teacher.recipe=null"]
    recipe = ["recipe.epochs=2", "recipe.optimizer.learning_rate=0.005", "student.start=teacher", "run.folder=run"]
    raise SystemExit(main([word for setting in (*data, *teacher, *recipe) for word in ("--set", setting)]))

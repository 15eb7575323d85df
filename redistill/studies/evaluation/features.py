"""Feature extractors: the standard Inception from a file of its weights, or a classifier trained here on the data.

A score means nothing without the extractor that it was computed with: every extractor has a name and a hash.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from redistill.config.files import resolved
from redistill.config.recipes import OptimizerConfig, RecipeConfig, ScheduleConfig
from redistill.config.settings import ClassifierConfig, DataConfig, RunConfig, StudentConfig, TeacherConfig
from redistill.data.sources import open_source
from redistill.errors import EvaluationError
from redistill.internal.files import checksum, write_atomically
from redistill.internal.seeding import derive
from redistill.studies.evaluation.network import FEATURES, FeatureNetwork
from redistill.trainers.classifier import train
from redistill.trainers.folder import RunFolder

Kind = Literal["inception-v3-compat", "redistill-domain"]
INCEPTION: Kind = "inception-v3-compat"
DOMAIN: Kind = "redistill-domain"
INCEPTION_FEATURES = 2048
FILE = "extractor.safetensors"
DATA = ("name", "root", "image_size", "test_resize", "channels", "attribute", "train_limit")
"""What the images of an extractor have of the denoiser's: all but augmentation and validation images."""
ROOT = Path("runs") / "extractors"
RECIPE = RecipeConfig(
    steps=2000,
    optimizer=OptimizerConfig(learning_rate=0.1),
    schedule=ScheduleConfig(name="one_cycle"),
)
"""How an extractor is trained: a few minutes on one core at 32x32."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extractor:
    """A feature extractor by a file.

    Attributes:
        kind: the name under which torch-fidelity knows it.
        features: the number of features that FID, KID, precision and recall are computed from.
        channels: of the images that it takes.
        description: for people; `digest` is the SHA-256 of the file.
    """

    kind: Kind
    path: Path
    features: int
    channels: int
    description: str
    digest: str

    def __str__(self) -> str:
        return f"{self.description}, sha256 {self.digest[:8]}"


class DomainFeatures(FeatureExtractorBase):  # type: ignore[misc]
    """torch-fidelity's view of a :class:`FeatureNetwork`: uint8 images [B, C, H, W] to "features" and "logits"."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        state = load_file(feature_extractor_weights_path)
        self.network = FeatureNetwork(state["trunk.0.weight"].shape[1], len(state["head.bias"]))
        self.network.load_state_dict(state)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The names of what it gives."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Logits for the inception score, features for all else."""
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """It is too small to gain."""
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What was asked for, in that order."""
        features = self.network.trunk(images.float() / 127.5 - 1)
        found = {"features": features, "logits": self.network.head(features)}
        return tuple(found[name] for name in self.features_list)


register_feature_extractor(DOMAIN, DomainFeatures)


def open_extractor(file: str | None, data: DataConfig, recipe: RecipeConfig = RECIPE, root: Path = ROOT) -> Extractor:
    """The extractor of a file: `.safetensors` is one trained here, `.pth` and `.pt` are Inception's weights.

    Without a file it is the classifier of the data set, trained first where that has not been done yet.

    Raises:
        EvaluationError: the file is missing or holds something else.
    """
    if file is None:
        return read_domain(train_extractor(data, recipe, root))
    path = Path(file).expanduser()
    if not path.is_file():
        raise EvaluationError(
            f"no extractor weights at {path}; give torch-fidelity's weights-inception-2015-12-05-6726825d.pth, "
            "or leave --extractor out to use a classifier that is trained here on the data set"
        )
    return read_domain(path) if path.suffix == ".safetensors" else read_inception(path)


def expected_features(file: str | None) -> int:
    """The number of features that the extractor of a file will have."""
    return FEATURES if file is None or Path(file).suffix == ".safetensors" else INCEPTION_FEATURES


def read_inception(path: Path) -> Extractor:
    """Inception, if the file holds its weights and nothing that would run when it is opened."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        fits = "Mixed_7c.branch_pool.conv.weight" in state
    except Exception:  # torch raises whatever the bytes happen to provoke
        fits = False
    if not fits:
        raise EvaluationError(
            f"{path} does not hold torch-fidelity's Inception weights; give weights-inception-2015-12-05-6726825d.pth"
        )
    return Extractor(INCEPTION, path, INCEPTION_FEATURES, 3, f"Inception of {path.name}", checksum(path))


def read_domain(path: Path) -> Extractor:
    """A classifier that was trained here, with what its file says of it."""
    try:
        with safe_open(str(path), "pt") as file:
            facts = json.loads((file.metadata() or {})["extractor"])
            channels = file.get_slice("trunk.0.weight").get_shape()[1]
    except (SafetensorError, KeyError, ValueError) as error:
        raise EvaluationError(f"{path} is not an extractor that was trained here; leave --extractor out") from error
    name = (
        f"classifier of {facts['data']} at {facts['image_size']} px ({FEATURES} features, top-1 {facts['top1']:.1f} %)"
    )
    return Extractor(DOMAIN, path, FEATURES, channels, name, checksum(path))


def train_extractor(data: DataConfig, recipe: RecipeConfig, root: Path) -> Path:
    """Train the classifier of a data set, or continue with it; a finished one is kept.

    Its folder is named by what it is trained on and how, so that no other data set's is taken for it.
    """
    facts = {name: getattr(data, name) for name in DATA}
    facts["root"] = str(Path(data.root).expanduser().resolve())
    key = derive(json.dumps([facts, resolved(recipe)], sort_keys=True))
    folder = root / f"{data.name}-{data.image_size}-{key:016x}"
    if not (folder / FILE).is_file():
        config = extractor_config(DataConfig(**facts), recipe)
        logger.info("training the feature extractor of %s into %s", data.name, folder)
        summary = train(config, folder, resume=folder.exists(), trust=True)
        told = {"data": data.name, "image_size": data.image_size, "top1": summary["last"]["test"]["top1"]}
        save_network(folder / FILE, load_file(RunFolder(folder).plain_weights), told)
    return folder / FILE


def extractor_config(data: DataConfig, recipe: RecipeConfig) -> ClassifierConfig:
    """The classifier's experiment: the small network, from scratch, without a teacher's help.

    Raises:
        EvaluationError: a data set without classes to tell apart.
    """
    classes = len(open_source(data).classes)
    if classes < 2:
        raise EvaluationError(
            f"{data.name} has one class, so that no classifier can be trained on it: give Inception's weights by "
            "--extractor, or classes (for celeba by --set data.attribute=Smiling)"
        )
    spec = f"redistill.studies.evaluation.network:FeatureNetwork?channels={data.channels}&num_classes={classes}"
    return ClassifierConfig(
        data=data,
        teacher=TeacherConfig(spec),
        student=StudentConfig(budget=None, start="scratch"),
        recipe=recipe,
        run=RunConfig(validate_every=10**6, log_every=50),
    )


def save_network(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a classifier as one file that says what it is: its data, image size and top-1."""
    write_atomically(path, save(dict(state), {"extractor": json.dumps(dict(facts))}))

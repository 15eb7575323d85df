"""Fidelity of a set of images to a reference, by torch-fidelity: FID, KID, IS, precision and recall.

Sources: FID (Heusel et al. 2017, arXiv 1706.08500), KID (Binkowski et al. 2018, 1801.01401), IS (Salimans et al. 2016,
1606.03498), precision and recall (Kynkaanniemi et al. 2019, 1904.06991).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from redistill.errors import EvaluationError
from redistill.internal.text import format_shape
from redistill.studies.evaluation.features import Extractor
from redistill.studies.evaluation.network import FEATURES

IMAGES_PER_FEATURE = 10
"""FID compares covariances of all features: with fewer images than this it tells more of their number than of them."""
KID_SUBSET = 1000  # or half of the images, so that subsets differ
NEIGHBOURS = 3


@dataclass(frozen=True)
class Fidelity:
    """The scores of some images against a reference.

    Attributes:
        images, reference: how many there were of each.
        kid: mean over random subsets, `kid_spread` its standard deviation.
        inception_score: of the images alone, by the extractor's own classes.
        precision: share of the images that lie among the reference; `recall` the share of the reference that lies
            among the images.
    """

    images: int
    reference: int
    fid: float
    kid: float
    kid_spread: float
    inception_score: float
    precision: float
    recall: float


class PixelSet(Dataset[Tensor]):
    """What torch-fidelity takes: uint8 images [C, H, W] and nothing beside them."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def check_count(images: int, features: int) -> None:
    """Refuse a number of images that gives no meaningful distance.

    Raises:
        EvaluationError: fewer than ten for each feature.
    """
    needed = IMAGES_PER_FEATURE * features
    if images < needed:
        smaller = (
            "" if features <= FEATURES else f", or leave --extractor out to use a classifier of {FEATURES} features"
        )
        raise EvaluationError(
            f"{images} images are too few for an extractor of {features} features: their covariances would tell more "
            f"of the number of images than of the images; give {needed} or more (-n {needed}){smaller}"
        )


def score(generated: Tensor, reference: Tensor, extractor: Extractor, seed: int = 0) -> Fidelity:
    """Compare uint8 images [N, C, H, W] with real ones [M, C, H, W] of the same size.

    Nothing is cached: torch-fidelity's cache goes by names and knows neither the data nor the weights.

    Raises:
        EvaluationError: too few images, or shapes and types that do not fit.
    """
    for pixels in (generated, reference):
        check_count(len(pixels), extractor.features)
    metrics = calculate_metrics(
        input1=PixelSet(_fitted(generated, reference, extractor)),
        input2=PixelSet(_fitted(reference, generated, extractor)),
        feature_extractor=extractor.kind,
        feature_extractor_weights_path=str(extractor.path),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=min(KID_SUBSET, len(generated) // 2, len(reference) // 2),
        prc_neighborhood=NEIGHBOURS,
        rng_seed=seed,
        cuda=torch.cuda.is_available(),
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    return Fidelity(
        images=len(generated),
        reference=len(reference),
        fid=metrics["frechet_inception_distance"],
        kid=metrics["kernel_inception_distance_mean"],
        kid_spread=metrics["kernel_inception_distance_std"],
        inception_score=metrics["inception_score_mean"],
        precision=metrics["precision"],
        recall=metrics["recall"],
    )


def _fitted(pixels: Tensor, others: Tensor, extractor: Extractor) -> Tensor:
    """The images with as many channels as the extractor takes, if they are like the others."""
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != others.shape[1:]:
        raise EvaluationError(
            f"images are {format_shape(pixels.shape[1:])} {str(pixels.dtype).removeprefix('torch.')}, the others "
            f"{format_shape(others.shape[1:])}; both must be uint8 and of one shape"
        )
    channels = pixels.shape[1]
    if channels not in (1, extractor.channels):
        raise EvaluationError(
            f"images have {channels} channels and {extractor.description} takes {extractor.channels}; "
            "give an extractor of the same data set"
        )
    return pixels.expand(-1, extractor.channels, -1, -1)

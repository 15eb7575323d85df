"""Regression: the sums over rows that ridge regression needs, and what follows from them in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TINY = 1e-12

TOLERANCE = 0.02
"""How far single precision may move what is to be inverted, relative to the ridge, before double precision is used."""

STEPS = (1, 10, 100)
"""Ridges that are tried, in units of the one given."""

GAIN = 5.0
"""How many times an output may be raised to get its variance back: of one that is hardly explained, most is noise."""

BLOCK = 1 << 25
"""Bytes of inputs that are laid out as a matrix at a time."""


class Moments:
    """Sums over rows of what a layer sees (G groups of F features) and of what it should give (O outputs a group).

    Products are summed in single precision within a block and in double precision over blocks, unless the first rows
    show the regression to be too ill-conditioned for that.
    """

    def __init__(self, ridge: float, centred: bool) -> None:
        self.ridge, self.centred, self.rows = ridge, centred, 0
        self.type: torch.dtype | None = None
        self.sums: list[Tensor] = []
        self.other: Moments | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows: inputs (B, G, F, L) and what is wanted (B, G, O, L)."""
        if self.type is None:
            single = x.dtype != torch.float64 and is_well_conditioned(x, self.ridge, self.centred)
            self.type = torch.float32 if single else torch.float64
        images = max(1, BLOCK * len(x) // max(1, x.numel() * x.element_size()))
        for rows, wanted in zip(torch.split(x, images), torch.split(y, images), strict=True):
            self._sum(_laid_out(rows.to(self.type)), _laid_out(wanted.to(self.type)))

    def add_to_either(self, x: Tensor, y: Tensor) -> None:
        """Rows as for ``add``, in turn to this half and to the other one, by which a ridge can be chosen."""
        if self.other is None:
            self.other = Moments(self.ridge, self.centred)
        half = self if self.rows <= self.other.rows else self.other
        half.add(x, y)

    def whole(self) -> Moments:
        """Both halves together."""
        if self.other is None or not self.other.rows:
            return self
        both = Moments(self.ridge, self.centred)
        both.sums = [a + b for a, b in zip(self.sums, self.other.sums, strict=True)]
        both.rows = self.rows + self.other.rows
        return both

    def _sum(self, x: Tensor, y: Tensor) -> None:
        products = (x @ x.mT, x @ y.mT, *(v.sum(-1, keepdim=True) for v in (x, y, y.square())))
        found = [product.sum(0).cpu().double() for product in products]
        self.sums = [a.add_(b) for a, b in zip(self.sums, found, strict=True)] if self.sums else found
        self.rows += x.shape[0] * x.shape[-1]

    def result(self) -> Regression:
        """The regression that the rows so far pose."""
        gram, moment, x, y, square = (total / self.rows for total in self.sums)
        return Regression(gram, moment, x, y, square, self.ridge, self.centred)


@dataclass(frozen=True)
class Regression:
    """Ridge regression by its means: W minimises mean |X W - Y|^2 + ridge p |W - W'|^2, W' the weights now.

    p is the mean power of a feature. With ``centred`` a constant may be added to the output at will, and all is about
    the means.

    Attributes:
        gram: mean products of features, (G, F, F).
        moment: of features and outputs, (G, F, O).
        x: mean features, (G, F, 1).
        y: mean outputs, (G, O, 1).
        square: mean squares of the outputs, (G, O, 1).
        ridge: the pull towards the weights now.
        centred: whether the output's mean is of no matter.
    """

    gram: Tensor
    moment: Tensor
    x: Tensor
    y: Tensor
    square: Tensor
    ridge: float
    centred: bool

    @cached_property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """``gram`` and ``moment`` about the means."""
        return self.gram - self.x @ self.x.mT, self.moment - self.x @ self.y.mT

    @cached_property
    def products(self) -> tuple[Tensor, Tensor]:
        """``gram`` and ``moment`` as the regression sees them."""
        return self.covariances if self.centred else (self.gram, self.moment)

    def solve(self, weights: Tensor, ridge: float | None = None) -> Tensor:
        """The best weights (G, F, O), pulled towards those given, by ``ridge`` where another is wanted."""
        ridge = self.ridge if ridge is None else ridge
        if math.isinf(ridge):
            return weights
        gram, moment = self.products
        power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY)
        damped = gram + torch.diag_embed((ridge * power)[:, None].expand(gram.shape[:2]))
        return weights + torch.cholesky_solve(moment - gram @ weights, torch.linalg.cholesky(damped))

    def scaled(self, weights: Tensor) -> Tensor:
        """The weights with the one gain that explains most: where a layer is hardly explained, less is more."""
        gram, moment = self.products
        given, common = (weights * (gram @ weights)).sum(), (weights * moment).sum()
        return weights * (common / given.clamp_min(TINY)).clamp(0, GAIN)

    def shift(self, weights: Tensor) -> Tensor:
        """The constant (G, O) that gives the mean wanted."""
        return (self.y - weights.mT @ self.x).squeeze(2)

    def statistics(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (G, O) of what weights give, before any bias."""
        variance = (weights * (self.covariances[0] @ weights)).sum(1)
        return (weights.mT @ self.x).squeeze(2), variance.clamp_min(0)

    def restored(self, weights: Tensor) -> Tensor:
        """The weights with the gain of each output at which it has the variance wanted.

        Whatever a regression cannot explain is missing from the variance of what it gives, and what is missing in one
        layer is missing in all that follow.
        """
        wanted = (self.square - self.y.square()).mT.clamp_min(0)
        given = self.statistics(weights)[1].unsqueeze(1)
        return weights * (wanted / given.clamp_min(TINY)).sqrt().clamp(1 / GAIN, GAIN)

    def unexplained(self, weights: Tensor) -> float:
        """The share of the outputs' variance that weights do not explain."""
        total = (self.square - self.y.square()).sum()
        explained = (2 * weights * self.covariances[1]).sum()
        left = total - explained + self.statistics(weights)[1].sum()
        return float(left.clamp_min(0) / total.clamp_min(TINY))


def choose_ridge(moments: Moments, weights: Tensor) -> float:
    """The pull with which weights solved on one half of the rows explain most of the other half.

    From the ridge given on, in steps of ten; infinite, no change, where every solution is worse than the weights now,
    as where there are fewer rows than features. Few rows make one half only: the ridge given.
    """
    if moments.other is None or not moments.other.rows:
        return moments.ridge
    halves = moments.result(), moments.other.result()
    errors = {
        ridge: sum(b.unexplained(a.solve(weights, ridge)) for a, b in (halves, halves[::-1]))
        for ridge in (*(moments.ridge * step for step in STEPS), math.inf)
    }
    return min(errors, key=errors.__getitem__)


def is_well_conditioned(x: Tensor, ridge: float, centred: bool) -> bool:
    """Whether products in single precision are exact enough, by the rows x (B, G, F, L).

    They are off by up to about eps F q, with q the mean square of a feature; the least eigenvalue of what is inverted
    is ridge p, with p the mean square or, ``centred``, the mean variance.
    """
    square = x.float().square().mean()
    power = square - x.float().mean((0, 3)).square().mean() if centred else square
    error = torch.finfo(torch.float32).eps * x.shape[2] * square
    return bool(error <= TOLERANCE * ridge * power)


def _laid_out(x: Tensor) -> Tensor:
    """One large product where there is one group; many small ones, summed afterwards, where there are several."""
    return x.permute(1, 2, 0, 3).flatten(2).unsqueeze(0) if x.shape[1] == 1 else x

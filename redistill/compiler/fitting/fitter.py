"""The fit itself: layer after layer, batch after batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from redistill.compiler.agreement import BATCH, Agreement, compare, run
from redistill.compiler.fitting.layers import Layers, Site, find_layers
from redistill.compiler.fitting.normalised import plain_weights
from redistill.compiler.fitting.norms import Statistics, calibrate
from redistill.compiler.fitting.regression import Moments, choose_ridge
from redistill.compiler.fitting.stream import Stream
from redistill.errors import FitError, ModelError
from redistill.tracing.capture import capture
from redistill.tracing.contexts import undisturbed
from redistill.tracing.copying import set_mode, working_copy
from redistill.tracing.linear_calls import on_grid
from redistill.tracing.operators import is_plain_batch_norm, module_of, modules_of
from redistill.tracing.skeleton import mode_of

RIDGE = 1e-2
"""Pull towards the inherited weights, in units of the mean power of a layer's inputs."""

LEAST = 2
"""Images that are needed."""

MEMORY = 1 << 30
"""Bytes of maps that are kept between layers, for each of the two networks."""


Extent = Literal["all", "restored"]


@dataclass(frozen=True)
class LayerFit:
    """The share of the variance of the teacher's output, averaged to the student's grid, that a layer does not explain.

    Attributes:
        layer: the layer's path.
        before: with the inherited weights, scaled to the teacher's variance, behind fitted layers.
        after: with the fitted weights, before their outputs get back the variance that stays unexplained.
    """

    layer: str
    before: float
    after: float


@dataclass(frozen=True)
class FitReport:
    """What became of each of the teacher's convolutions and linear layers.

    Attributes:
        layers: those that were fitted, in the order of the data.
        unchanged: those that see and give what the teacher's do, so that nothing is to be fitted.
        kept: those on grids coarser than the teacher's that keep their weights, where only restored layers are fitted.
        left: those that could not be fitted, and why.
    """

    layers: tuple[LayerFit, ...]
    unchanged: tuple[str, ...]
    left: dict[str, str]
    kept: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many layers there are."""
        return len(self.layers) + len(self.unchanged) + len(self.left) + len(self.kept)

    def __iter__(self) -> Iterator[LayerFit]:
        return iter(self.layers)

    def __str__(self) -> str:
        parts = [f"fitted {len(self.layers)} of {self.total} layers"]
        if self.layers:
            before, after = (100 * fmean(getattr(layer, when) for layer in self.layers) for when in ("before", "after"))
            parts += [f"of their teacher's variance {before:.1f} % was unexplained, now {after:.1f} %"]
        parts += [f"{len(self.unchanged)} are the teacher's as they are"] if self.unchanged else []
        parts += [f"{len(self.kept)} on coarser grids keep their weights"] if self.kept else []
        parts += [f"{len(self.left)} cannot be ({_first_reasons(self.left)})"] if self.left else []
        return "; ".join(parts)


@undisturbed
@torch.no_grad()
def fit(
    student: GraphModule,
    teacher: nn.Module,
    *inputs: Tensor,
    ridge: float = RIDGE,
    memory: int = MEMORY,
    layers: Extent | None = None,
) -> FitReport:
    """Fit a student's convolutions and linear layers to its teacher's, in place.

    Layers whose weight is called once in both networks are fitted. What only the student has (RED blocks) keeps its
    weights, and its batch norms measure their statistics anew. No random numbers are drawn.

    Args:
        student: a student that inherited the teacher's weights; see ``redistill.transform``.
        teacher: its teacher, on the same device; it is not changed.
        inputs: a batch of what both networks are called with, such as images (B, C, H, W); the more the better.
        ridge: least pull towards the inherited weights, scaled, relative to the mean power of a layer's inputs; each
            layer gets a stronger one, or keeps its weights, where that explains more of images it was not solved on.
        memory: bytes of maps that may be kept between layers, for each of the two networks. Less memory takes longer,
            for maps that are not kept are computed again. Beside them and the images there are the maps of one batch
            of 16 images, and of one layer the matrix to invert: 16 bytes for each pair of its weights to one output.
        layers: ``"all"`` of them, or only those ``"restored"`` to the teacher's own grid, behind coarser ones with
            inherited weights, which go on computing what they have learnt, on a smaller image. None: whichever, fitted
            to half of the images, agrees better with the teacher on the others.

    Returns:
        What each fitted layer leaves unexplained, before and after, in the order of the data; what was left out.

    Raises:
        ModelError: fewer than two images, or a teacher the student was not made from.
        FitError: there is something to fit, and no layer that can be.
        TraceError: the teacher cannot be traced.

    Example:
        >>> import torch, redistill
        >>> from redistill.models import load_model
        >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
        >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
        >>> report = redistill.fit(student, teacher, torch.randn(16, 3, 32, 32), layers="all")
        >>> len(report.layers) > 5
        True
    """
    images = len(inputs[0]) if inputs else 0
    if images < LEAST:
        raise ModelError(f"fitting needs two images or more, not {images}; some hundreds are better")
    graph_module = capture(teacher, [value[:2] for value in inputs], check=False).graph_module
    return fit_graphs(student, graph_module, inputs, ridge, memory, layers or _judge(student, graph_module, inputs))


def _judge(student: GraphModule, teacher: GraphModule, inputs: tuple[Tensor, ...]) -> Extent:
    """The layers which, fitted to every second image, bring a student nearer to its teacher on the others."""
    extents = find_extents(student, teacher, inputs)
    if len(extents) == 1 or len(inputs[0]) < 2 * LEAST:
        return extents[0]
    seen, held_out = (tuple(value[start::2] for value in inputs) for start in (0, 1))
    aim = run(teacher, held_out)
    before = {key: value.clone() for key, value in student.state_dict().items()}
    found: dict[Extent, Agreement] = {}
    for extent in extents:
        fit_graphs(student, teacher, seen, layers=extent)
        found[extent] = compare(run(student, held_out), aim)
        student.load_state_dict(before)
    return max(extents, key=lambda extent: found[extent].rank)


def find_extents(student: GraphModule, teacher: GraphModule, inputs: tuple[Tensor, ...]) -> tuple[Extent, ...]:
    """Which layers may be fitted: all, and where that is something else, only those on the teacher's own grid."""
    with mode_of(student, training=False), mode_of(teacher, training=False):
        sites = find_layers(student, teacher, tuple(value[:2] for value in inputs)).sites
    some = {site.is_restored for site in sites}
    return ("all", "restored") if len(some) == 2 else ("all",)


@torch.no_grad()
def fit_graphs(
    student: GraphModule,
    teacher: GraphModule,
    inputs: tuple[Tensor, ...],
    ridge: float = RIDGE,
    memory: int = MEMORY,
    layers: Extent = "all",
) -> FitReport:
    """Fit a student to a teacher that is a graph already; see :func:`fit`."""
    teacher = working_copy(teacher)
    set_mode(teacher, training=False)
    plain = plain_weights(student, write=True), plain_weights(teacher, write=False)
    with mode_of(student, training=False), plain[0], plain[1]:
        found = find_layers(student, teacher, tuple(value[:2] for value in inputs))
        if not found.sites and found.left:
            raise FitError(f"none of the {len(found.left)} layers can be fitted: {_first_reasons(found.left)}")
        batches = list(zip(*(torch.split(value, BATCH) for value in inputs), strict=True))
        return _Fitter(Stream(student, batches, memory), Stream(teacher, batches, memory), ridge).run(found, layers)


def _first_reasons(left: dict[str, str]) -> str:
    shown = [f"{layer}: {reason}" for layer, reason in list(left.items())[:3]]
    return ", ".join(shown) + (", ..." if len(left) > len(shown) else "")


class _Fitter:
    """Goes from layer to layer; each sees what the fitted layers before it give."""

    def __init__(self, student: Stream, teacher: Stream, ridge: float) -> None:
        self.student, self.teacher, self.ridge = student, teacher, ridge
        self.order = student.index
        self.fits: list[LayerFit] = []
        self.left: dict[str, str] = {}
        self.rescaled = {path for path, module in modules_of(teacher.module).items() if is_plain_batch_norm(module)}

    def run(self, layers: Layers, extent: Extent) -> FitReport:
        """Fit the sites of an extent and measure every norm, in the student's order."""
        kept = tuple(site.layer for site in layers.sites if extent == "restored" and not site.is_restored)
        stops: list[Site | Node] = [*(site for site in layers.sites if site.layer not in kept), *layers.norms]
        stops.sort(key=lambda stop: self.order[stop.node if isinstance(stop, Site) else stop])
        for stop in tqdm(stops, desc="fitting", unit="layer", leave=False, disable=None):
            if isinstance(stop, Site):
                self._fit(stop)
            else:
                self._measure(stop)
        return FitReport(tuple(self.fits), layers.unchanged, layers.left | self.left, kept)

    def _fit(self, site: Site) -> None:
        moments, bias = self._moments(site)
        if moments is None:
            self.left[site.layer] = "its output has no grid to be averaged to"
            if site.norm is not None:
                self._measure(site.norm)
            return
        regression = moments.whole().result()
        inherited = site.weight.cpu().double().reshape(regression.moment.mT.shape).mT
        start = regression.scaled(inherited) if site.is_last else regression.restored(inherited)
        solved = regression.solve(start, choose_ridge(moments, start))
        self.fits.append(LayerFit(site.layer, regression.unexplained(start), regression.unexplained(solved)))
        weights = solved if site.is_last else regression.restored(solved)
        site.weight.copy_(weights.mT.reshape(site.weight.shape))
        shift = regression.shift(weights).flatten()
        if bias is not None:
            bias.copy_(shift)
        if site.norm is not None:
            mean, variance = (value.flatten() for value in regression.statistics(weights))
            if bias is not None:
                mean, shift = mean + shift, torch.zeros_like(shift)
            calibrate(_norm(site.norm), mean, variance, shift)

    def _moments(self, site: Site) -> tuple[Moments | None, Tensor | None]:
        """What the regression needs to know, and the layer's bias; None if its output is not to be compared."""
        moments: Moments | None = None
        for _ in zip(self.student.at(site.node), self.teacher.at(site.teacher_node), strict=True):
            call = self.student.call(site.node, site.weight)
            aim = on_grid(self.teacher.call(site.teacher_node, site.teacher_weight).output(), call, site.crop)
            if aim is None:
                return None, None
            moments = moments or Moments(self.ridge, centred=site.norm is not None or call.bias is not None)
            moments.add_to_either(
                call.patches(site.crop), aim.reshape(len(aim), call.groups, aim.shape[1] // call.groups, -1)
            )
        return moments, call.bias

    def _measure(self, node: Node) -> None:
        """Give a batch norm the statistics of what it sees."""
        norm, gathered = _norm(node), Statistics()
        for _ in self.student.at(node):
            gathered.add(self.student.env[node.all_input_nodes[0]])
        calibrate(norm, *gathered.result(), 0.0 if str(node.target) in self.rescaled else None)


def _norm(node: Node) -> _BatchNorm:
    norm = module_of(node)
    assert isinstance(norm, _BatchNorm)
    return norm

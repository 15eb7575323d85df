"""Fitting: weights with which a student computes, layer by layer, what its teacher computes there.

A student inherits its teacher's weights, but on coarser grids they no longer compute the same thing: a 3x3 kernel now
spans several times as much of the image. Here every convolution is solved for anew, in the order of the data: given
what the fitted student shows it, the weights that come nearest to the teacher's own output at that layer, averaged
down to the student's grid. Each is a ridge regression with a closed form, so there are no labels, no gradients and no
learning rate. Batch norms are rescaled so that a batch's statistics give what the teacher's gave.

Reconstructing outputs layer by layer comes from channel pruning (He, Zhang and Sun, arXiv 1707.06168, eq. 2); here the
grids differ and the channels stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from redistill.errors import ModelError
from redistill.internal.text import format_shape
from redistill.tracing.capture import capture
from redistill.tracing.operators import is_foldable_batch_norm, is_plain_batch_norm, modules_of
from redistill.tracing.skeleton import mode_of

RIDGE = 1e-2
"""Pull towards the inherited weights, in units of the mean power of a layer's inputs."""

CHUNK = 64
"""Images whose patches are laid out at a time."""

TINY = 1e-12


@dataclass(frozen=True)
class LayerFit:
    """The share of the variance of the teacher's output, averaged to the student's grid, that a layer does not explain.

    Attributes:
        layer: the convolution's path.
        before: with the inherited weights, behind fitted layers.
        after: with the fitted weights.
    """

    layer: str
    before: float
    after: float


@torch.no_grad()
def fit(student: GraphModule, teacher: nn.Module, *inputs: Tensor, ridge: float = RIDGE) -> tuple[LayerFit, ...]:
    """Fit a student's convolutions to its teacher's, in place.

    Convolutions called once in both networks are fitted. What only the student has (RED blocks) keeps its weights, and
    its batch norms measure their statistics anew.

    Args:
        student: a student that inherited the teacher's weights; see ``redistill.transform``.
        teacher: its teacher, on the same device; it is not changed.
        inputs: a batch of what both networks are called with, such as images (B, C, H, W). The more images the better
            the weights; all of a layer's maps are in memory at once.
        ridge: pull towards the inherited weights, relative to the mean power of a layer's inputs.

    Returns:
        What each fitted layer leaves unexplained, before and after, in the order of the data.

    Raises:
        ModelError: fewer than two images, or a teacher the student was not made from.
        TraceError: the teacher cannot be traced.
    """
    images = len(inputs[0]) if inputs else 0
    if images < 2:
        raise ModelError(f"fitting needs two images or more, not {images}; some hundreds are better")
    with mode_of(teacher, training=False), mode_of(student, training=False):
        graph_module = capture(teacher, [value[:2] for value in inputs], check=False).graph_module
        layers = _shared(student, graph_module)
        outputs = _TeacherOutputs(graph_module, layers, inputs)
        with tqdm(total=len(layers), desc="fitting", unit="layer", leave=False, disable=None) as progress:
            fitter = _Fitter(student, layers, outputs, ridge, progress)
            fitter.run(*inputs)
    return tuple(fitter.fits)


class _TeacherOutputs(Interpreter):
    """What a teacher's layers give, computed no sooner than it is asked for."""

    def __init__(self, graph_module: GraphModule, layers: set[str], inputs: tuple[Tensor, ...]) -> None:
        super().__init__(graph_module)
        self.wanted = layers
        self.passed: dict[str, Tensor] = {}
        self.args_iter = iter(inputs)
        self.steps = self._steps()

    def of(self, layer: str) -> Tensor:
        """The output of a layer; asked for once."""
        if layer in self.passed:
            return self.passed.pop(layer)
        for path, value in self.steps:
            if path == layer:
                return value
            self.passed[path] = value.clone()  # what follows may overwrite it
        raise KeyError(layer)

    def _steps(self) -> Iterator[tuple[str, Tensor]]:
        for node in self.graph.nodes:
            self.env[node] = self.run_node(node)
            if node.op == "call_module" and node.target in self.wanted:
                yield str(node.target), self.env[node]
            for finished in self.user_to_last_uses.get(node, []):
                del self.env[finished]


class _Fitter(Interpreter):
    """Runs the student, fitting each convolution before what follows sees its output."""

    def __init__(
        self, student: GraphModule, layers: set[str], teacher: _TeacherOutputs, ridge: float, progress: tqdm[Any]
    ) -> None:
        super().__init__(student)
        self.wanted, self.teacher, self.ridge, self.progress = layers, teacher, ridge, progress
        self.norms = {path for path, module in modules_of(teacher.module).items() if is_plain_batch_norm(module)}
        modules = modules_of(student)
        normalised = [node for node in student.graph.nodes if is_foldable_batch_norm(node, modules)]
        self.before = {str(node.target): str(node.all_input_nodes[0].target) for node in normalised}
        self.shifts: dict[str, Tensor] = {}
        self.fits: list[LayerFit] = []

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Fit, then run."""
        module = self.fetch_attr(target)
        if target in self.wanted:
            return self._fit(target, module, args[0])
        if is_plain_batch_norm(module) and module.running_mean is not None:
            shift = self.shifts.get(self.before.get(target, ""), 0.0)
            _measure(module, args[0], shift, rescale=target in self.norms)
        return super().call_module(target, args, kwargs)

    def _fit(self, layer: str, module: nn.Conv2d, inputs: Tensor) -> Tensor:
        output = module(inputs)
        aim = _on_the_grid_of(output, self.teacher.of(layer))
        free = layer in self.before.values()
        fit_convolution(module, inputs, aim - output, self.ridge, free)
        fitted: Tensor = module(inputs)
        self.fits.append(LayerFit(layer, _unexplained(output, aim), _unexplained(fitted, aim)))
        if free:
            self.shifts[layer] = (aim - fitted).mean((0, 2, 3))
        self.progress.update()
        return fitted


def _shared(student: GraphModule, teacher: GraphModule) -> set[str]:
    """Paths of the convolutions that can be fitted; a student's may give a pixel-shuffled multiple of the channels."""
    shared = _convolutions(student) & _convolutions(teacher)
    for path in sorted(shared):
        ours, theirs = (tuple(network.get_parameter(f"{path}.weight").shape) for network in (student, teacher))
        if ours[1:] != theirs[1:] or ours[0] % theirs[0]:
            raise ModelError(
                f"{path} is {format_shape(ours)} in the student and {format_shape(theirs)} in the teacher; "
                "fit a student to the teacher it was made from"
            )
    return shared


def _convolutions(graph_module: GraphModule) -> set[str]:
    """Paths of the 2D convolutions that are called once and pad with zeros."""
    modules = modules_of(graph_module)
    calls = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[path]) for path in calls)
    return {path for path in calls if times[id(modules[path])] == 1 and _is_plain(modules[path])}


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _on_the_grid_of(student: Tensor, teacher: Tensor) -> Tensor:
    """A teacher's map as the student's layer should give it.

    Averaged to its height and width; where a pixel shuffle follows in the student, its pixels are laid into channels.
    """
    side = math.isqrt(student.shape[1] // teacher.shape[1])
    laid = F.pixel_unshuffle(teacher, side) if side > 1 else teacher
    return F.adaptive_avg_pool2d(laid, (student.shape[-2], student.shape[-1]))


def _unexplained(value: Tensor, aim: Tensor) -> float:
    return float(_variance(value - aim) / _variance(aim).clamp_min(TINY))


def _variance(value: Tensor) -> Tensor:
    """The sum over channels of their variances."""
    return value.var((0, 2, 3)).sum()


def fit_convolution(module: nn.Conv2d, inputs: Tensor, lacking: Tensor, ridge: float, free_mean: bool) -> None:
    """Add to a convolution's weights what, by ridge regression, best explains what its output lacks.

    For each group of channels the change W minimises |X W - R|^2 + ridge n p |W|^2, with X the patches of the inputs
    (n rows), R what is lacking, and p the mean power of X.

    Args:
        module: the convolution; its weights are changed.
        inputs: its inputs (B, C, H, W).
        lacking: the wanted minus the present output, (B, C', H', W').
        ridge: weight of the pull towards no change.
        free_mean: whether the output's mean is of no matter, because a batch norm follows. A bias sets it in any case.
    """
    sums = _Sums(centred=free_mean or module.bias is not None)
    for x, rest in zip(torch.split(inputs, CHUNK), torch.split(lacking, CHUNK), strict=True):
        sums.add(_patches(module, x), _by_group(rest.flatten(2), module.groups))
    change, shift = sums.solve(ridge)
    module.weight += change.mT.reshape(module.weight.shape).to(module.weight)
    if module.bias is not None:
        module.bias += shift.flatten().to(module.bias)


def _patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What each output position sees, by group: (groups, B H' W', features)."""
    assert not isinstance(module.padding, str)
    if module.weight[0, 0].numel() == 1 and not any(module.padding):
        seen = inputs[..., :: module.stride[0], :: module.stride[1]].flatten(2)
    else:
        seen = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return _by_group(seen, module.groups)


def _by_group(columns: Tensor, groups: int) -> Tensor:
    """(B, groups x F, L) as (groups, B L, F)."""
    batch, features, length = columns.shape
    return columns.view(batch, groups, features // groups, length).permute(1, 0, 3, 2).flatten(1, 2)


class _Sums:
    """What least squares needs to know of any number of rows, summed up in double precision."""

    def __init__(self, centred: bool) -> None:
        self.centred, self.rows = centred, 0
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Rows of inputs (G, N, F) and of what is wanted (G, N, O)."""
        found = [part.cpu().double() for part in (x.mT @ x, x.mT @ y, x.sum(1, keepdim=True), y.sum(1, keepdim=True))]
        self.sums = [a + b for a, b in zip(self.sums, found, strict=True)] if self.sums else found
        self.rows += x.shape[1]

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (G, F, O), and the shift (G, 1, O) that gives the mean wanted."""
        gram, moment, x, y = (part / self.rows for part in self.sums)
        if self.centred:
            gram, moment = gram - x.mT @ x, moment - x.mT @ y
        power = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY)
        weights = torch.linalg.solve(gram + ridge * power[:, None, None] * torch.eye(gram.shape[-1]), moment)
        return weights, y - x @ weights


def _measure(norm: _BatchNorm, value: Tensor, shift: Tensor | float, rescale: bool) -> None:
    """Give a batch norm the statistics of its input (B, C, ...).

    With ``rescale`` its gain and bias change so that the input plus ``shift`` comes out as it did before.
    """
    variance, mean = torch.var_mean(value.float(), [axis for axis in range(value.dim()) if axis != 1], correction=0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if rescale and norm.affine:
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(gain * (mean + shift - norm.running_mean))
        norm.weight.copy_(gain * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)

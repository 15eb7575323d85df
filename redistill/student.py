"""The student: an ordinary module that fits the budget, and its folder on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from redistill import recipe
from redistill.compiler.record import Provenance, StudentRecord, to_recipe
from redistill.errors import StudentError
from redistill.internal.text import format_shapes
from redistill.memory.lifetimes import MemoryProfile
from redistill.passes.patch import join_of, lay_patches
from redistill.planning.patches.plan import PatchPlan
from redistill.planning.plan import PoolingPlan
from redistill.planning.stages import Stage
from redistill.planning.taps import Tap
from redistill.report import Comparison, render
from redistill.tracing.capture import capture
from redistill.tracing.contexts import undisturbed
from redistill.tracing.copying import in_mode
from redistill.tracing.deployed import share_tensors
from redistill.tracing.meta import Meta
from redistill.tracing.outputs import with_outputs


class Student(GraphModule):
    """A teacher rewritten to fit a budget of peak activation memory.

    An ordinary module: its forward takes and returns what the teacher's does, its state dict keeps the teacher's keys,
    RED blocks come under ``red.*``; there are no hooks.
    ``tapped()`` and ``teacher_tapped()`` give modules over the same weights whose outputs include the taps. What it
    knows of itself is in ``record``, and each part of that under its own name too. Where the teacher has a submodule
    called like one of our own names, the name is the submodule's; ``Student.save(student, folder)`` is ours still.

    A student with patches runs piece by piece in eval mode, on inputs of the size it was made for (the batch is free).
    In train mode, and at other sizes, it runs whole maps; its graph is the whole one, of which ``tapped()`` is made.

    Example:
        >>> import torch, redistill
        >>> from redistill.models import load_model
        >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
        >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
        >>> print(student.plan)
        2, 1, 1: 0.188 -> 0.078 MiB (deploy), 68 % of the MACs
        >>> student(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    def __init__(self, root: Any, graph: Graph, class_name: str = "Student") -> None:
        names = {name.partition(".")[0] for name in (root if isinstance(root, dict) else root._modules)}
        for name in names & Student.__dict__.keys():
            setattr(type(self), name, _submodule(name))  # of this instance alone: torch gives each graph its own class
        super().__init__(root, graph, class_name)

    @classmethod
    def from_graph(cls, graph_module: GraphModule, record: StudentRecord, config: Any = None) -> Student:
        """Take over the modules and graph of ``graph_module``; ``config`` is the teacher's.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> twin = redistill.Student.from_graph(student, student.record)
            >>> twin.plan == student.plan
            True
        """
        student = cls(graph_module, graph_module.graph)
        student.meta.update(student=record, config=config)
        if record.patches is not None and record.patches.regions:
            convention = record.provenance.request.convention.of_graph
            student.meta[Meta.DEPLOYED] = lay_patches(student, join_of(convention))
        student.recompile()
        return student

    def recompile(self) -> Any:
        """Write the forward anew: the graph's, or in inference its deployed form's, called as the teacher is called.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> logits = student.graph.output_node().args[0]
            >>> student.graph.output_node().args = ((logits, logits),)
            >>> code = student.recompile()  # now its forward does what the graph says
            >>> len(student(torch.zeros(1, 3, 32, 32)))
            2
        """
        code = super().recompile()
        meta = self.__dict__.get("meta", {})
        record = meta.get(Meta.RECORD)
        if Meta.DEPLOYED in meta:
            sizes = [spec.shape[1:] for spec in record.provenance.inputs]
            type(self).forward = _dispatch(type(self).forward, sizes)
        if record is not None and not record.call.is_plain:
            type(self).forward = record.call.wrap(type(self).forward)
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        copied = super().__deepcopy__(memo)
        if Meta.DEPLOYED in copied.meta:
            share_tensors(copied.meta[Meta.DEPLOYED], copied)
        copied.recompile()
        return copied

    @classmethod
    def load(
        cls, directory: str | Path, teacher: nn.Module | None = None, trust: bool = False, *, passes: Iterable[Any] = ()
    ) -> Student:
        """Load a saved student: :func:`redistill.load_student`.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> redistill.Student.load(student.save("student"), teacher).plan.factors
            (2, 1, 1)
        """
        from redistill.compiler.loading import load_student  # which makes students

        return load_student(directory, teacher, trust, passes=passes)

    def _deepcopy_init(self) -> Any:
        return Student.__init__

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise StudentError(
            "a student is not pickled (an unpickled graph would no longer work in place); write it with "
            "student.save(folder) and read it with redistill.load_student(folder), or keep student.state_dict()"
        )

    @property
    def record(self) -> StudentRecord:
        """All that the student knows of itself."""
        return record_of(self)

    @property
    def plan(self) -> PoolingPlan:
        """The pooling plan, and what it reaches."""
        return record_of(self).plan

    @property
    def patches(self) -> PatchPlan | None:
        """The regions run piece by piece; None if patches were not asked for."""
        return record_of(self).patches

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Where the student is compared with its teacher."""
        return record_of(self).taps

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The teacher's stages."""
        return record_of(self).stages

    @property
    def teacher_profile(self) -> MemoryProfile:
        """The teacher's memory."""
        return record_of(self).teacher_profile

    @property
    def profile(self) -> MemoryProfile:
        """The student's memory."""
        return record_of(self).profile

    @property
    def reentry(self) -> str | None:
        """The node from which on the student's grids are the teacher's; None if there is none."""
        return record_of(self).reentry

    @property
    def provenance(self) -> Provenance:
        """Where the student comes from, and what was asked of it."""
        return record_of(self).provenance

    @property
    def config(self) -> Any:
        """The teacher's configuration, where it has one, as libraries expect of a model of theirs."""
        if self.meta["config"] is None:
            raise AttributeError("the teacher has no config")
        return self.meta["config"]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def tapped(self, features: Mapping[str, str] | None = None) -> GraphModule:
        """A module over the student's own weights that also returns what stands at the taps.

        Args:
            features: further graph nodes to return, by the name they shall have.

        Returns:
            A module whose forward yields ``(output, {name: tensor})``: what each RED block yields, and features.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> output, maps = student.tapped()(torch.zeros(2, 3, 32, 32))
            >>> list(maps) == [tap.name for tap in student.taps]
            True
        """
        places = {n.meta[Meta.TAP]: n.name for n in self.graph.nodes if Meta.TAP in n.meta} | dict(features or {})
        return with_outputs(self, places)

    @undisturbed
    def teacher_tapped(
        self, teacher: nn.Module, features: Mapping[str, str] | None = None, output: bool = True
    ) -> GraphModule:
        """The teacher's side of ``tapped()``: a module over the teacher's own weights, run only as deep as is needed.

        Args:
            teacher: the teacher (or any module of the same architecture).
            features: further graph nodes to return, by the name they shall have.
            output: whether the teacher's output is wanted; None is returned in its place otherwise.

        It is in eval mode, whatever mode the teacher is in, which keeps it: running it changes no statistics.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> _, maps = student.teacher_tapped(teacher, output=False)(torch.zeros(2, 3, 32, 32))
            >>> list(maps) == [tap.name for tap in student.taps]
            True
        """
        device = next((p.device for p in teacher.parameters()), None)
        graph_module = capture(teacher, record_of(self).example(device), check=False).graph_module
        places = {tap.name: tap.teacher_node for tap in record_of(self).taps} | dict(features or {})
        return with_outputs(in_mode(graph_module, training=False), places, output)

    def report(self) -> str:
        """The terminal report: teacher and student side by side.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> "2.40x" in student.report()
            True
        """
        return render(Student.comparison(self))

    def comparison(self) -> Comparison:
        """What the reports show.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> round(student.comparison().ratio, 2)
            2.4
        """
        record, origin = record_of(self), record_of(self).provenance
        return Comparison(
            title=origin.model or origin.teacher,
            input=format_shapes(origin.inputs),
            convention=origin.request.convention,
            dtype=origin.request.dtype,
            teacher=record.teacher_profile,
            student=record.profile,
            stages=record.stages,
            plan=record.plan,
            taps=record.taps,
            notes=origin.notes,
            seconds=origin.seconds,
            weights=origin.weights,
            patches=record.patches,
            nothing_in_place=record.nothing_in_place,
            own_order=record.own_order,
        )

    def save(self, directory: str | Path) -> Path:
        """Write the student's recipe and weights to ``directory``, whole or not at all.

        Raises:
            StudentError: the folder cannot be written, or holds something that is not a student.

        Example:
            >>> import torch, redistill
            >>> from redistill.models import load_model
            >>> teacher = load_model("redistill:cifar_resnet?depth=8", "random")
            >>> student = redistill.transform(teacher, torch.zeros(1, 3, 32, 32), factors=[2, 1, 1])
            >>> sorted(path.name for path in student.save("student").iterdir())
            ['student.yaml', 'weights.safetensors']
        """
        return recipe.write(Path(directory), to_recipe(record_of(self)), self)


def _dispatch(whole: Callable[..., Any], sizes: Sequence[tuple[int, ...]]) -> Callable[..., Any]:
    """A forward that runs the deployed form in eval mode on inputs of these sizes, and ``whole`` otherwise."""

    def forward(self: Student, *inputs: Any) -> Any:
        if self.training or any(tuple(x.shape[1:]) != size for x, size in zip(inputs, sizes, strict=False)):
            return whole(self, *inputs)
        return self.meta[Meta.DEPLOYED](*inputs)

    return forward


def _submodule(name: str) -> property:
    def get(student: nn.Module) -> nn.Module | None:
        if name not in student._modules:
            raise AttributeError(name)
        return student._modules[name]

    return property(get)


def record_of(student: Student) -> StudentRecord:
    """What the student knows of itself, whatever its teacher's submodules are called."""
    found = student.meta[Meta.RECORD]
    assert isinstance(found, StudentRecord)
    return found

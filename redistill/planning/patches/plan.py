"""The patch plan as a user sees it: which regions are run in parts, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redistill.errors import PlanError
from redistill.planning.patches.network import PatchNetwork
from redistill.planning.patches.programs import Form
from redistill.planning.patches.segmenting import PatchCertificate, Segmentation


@dataclass(frozen=True)
class PatchedRegion:
    """The operations from node ``first`` to node ``last``, in execution order, run in a form."""

    first: str
    last: str
    form: Form

    def __str__(self) -> str:
        return f"{self.first} to {self.last} in {self.form}"


@dataclass(frozen=True)
class PatchPlan:
    """Regions run in parts: what they compute more than the network run whole, and what that would need."""

    regions: tuple[PatchedRegion, ...] = ()
    extra_macs: int = 0
    whole_bytes: int = 0
    certificate: PatchCertificate | None = field(default=None, compare=False)

    @classmethod
    def of(cls, segmentation: Segmentation, network: PatchNetwork) -> PatchPlan:
        """The plan of a segmentation, by names of nodes."""
        names = [step.node.name for step in network.steps]
        regions = tuple(PatchedRegion(names[r.start], names[r.end - 1], r.form) for r in segmentation.regions)
        return cls(regions, segmentation.extra_macs, certificate=segmentation.certificate)

    def __str__(self) -> str:
        return "; ".join(map(str, self.regions)) or "nothing is run in parts"

    def to_plain(self) -> list[dict[str, Any]]:
        """The regions as plain data."""
        return [
            {"first": r.first, "last": r.last, "rows": r.form.rows, "columns": r.form.columns, "keeps": r.form.keeps}
            for r in self.regions
        ]

    @classmethod
    def from_plain(cls, data: Sequence[Mapping[str, Any]]) -> PatchPlan:
        """Read what :meth:`to_plain` wrote.

        Raises:
            PlanError: a region that cannot be read.
        """
        try:
            return cls(tuple(_region(entry) for entry in data))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"a patched region cannot be read: {error!r}") from error


def _region(entry: Mapping[str, Any]) -> PatchedRegion:
    rows, columns = int(entry["rows"]), int(entry["columns"])
    if rows < 1 or columns < 1:
        raise ValueError(f"{rows} x {columns} tiles")
    return PatchedRegion(str(entry["first"]), str(entry["last"]), Form(rows, columns, bool(entry["keeps"])))

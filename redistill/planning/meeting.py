"""Meeting: by how much a map is longer where it meets another one of its stage than where it is made."""

from __future__ import annotations

from torch.fx import Node

from redistill.planning.stages import Grid, StageGraph


def longer_when_met(node: Node, stages: StageGraph) -> Grid:
    """How many cells pads add to each side of a map before a sum or concatenation takes it; a pad keeps its width on
    any grid, so the map has to be made so much shorter than the grid where it is met."""
    made, stage = stages.growth.sides(node.name), stages.stage_of[node.name]
    seen, queue = {node}, [node]
    while queue:
        for user in queue.pop(0).users:
            if user in seen or stages.stage_of.get(user.name) != stage:
                continue
            seen.add(user)
            queue.append(user)
            met = stages.growth.sides(user.name)
            others = [n for n in user.all_input_nodes if n not in seen and stages.stage_of.get(n.name) == stage]
            if len(met) == len(made) and any(len(stages.growth.axes(n.name)) == len(made) for n in others):
                return tuple(max(0, there - here) for there, here in zip(met, made, strict=True))
    return (0,) * len(made)

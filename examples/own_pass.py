"""Rewrite the student's graph by a pass of one's own; it runs after ours, is verified, and its memory counts.

From the command line: PYTHONPATH=examples redistill transform --pass own_pass:ReplaceReLU
"""

import digits
from torch import nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

import redistill


class ReplaceReLU(PassBase):
    """Puts another activation in the place of each ReLU."""

    def __init__(self, activation: type[nn.Module] = nn.Hardswish) -> None:
        super().__init__()
        self.activation = activation

    def call(self, graph_module: GraphModule) -> PassResult:
        """Rewrite the graph in place."""
        for node in graph_module.graph.find_nodes(op="call_module"):
            if isinstance(graph_module.get_submodule(node.target), nn.ReLU):
                graph_module.set_submodule(node.target, self.activation())
        return PassResult(graph_module, True)


if __name__ == "__main__":
    images, labels, *test = digits.load()
    teacher = digits.train(digits.network(), images, labels)
    student = redistill.transform(teacher, images[:1], budget="4x", passes=[ReplaceReLU()])
    print(sum(isinstance(module, nn.Hardswish) for module in student.modules()), "activations replaced;", student.plan)
    digits.train(student, images, labels, epochs=2)
    print(f"{digits.accuracy(student, *test):.1f} % after two epochs")
    student.save("student")
    redistill.load_student("student", teacher=digits.network(), passes=[ReplaceReLU()])

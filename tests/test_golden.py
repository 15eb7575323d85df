"""Golden graphs of four students, node by node; ``pytest tests/test_golden.py --regenerate`` writes them anew."""

from pathlib import Path

import pytest
import torch

import redistill
from redistill.memory.recording import record_graph
from redistill.models import example_inputs, load_model

GOLDEN = Path(__file__).parent / "golden"
STUDENTS = {
    "resnet18": ("torchvision:resnet18", "4x", "none"),
    "mobilenet_v2": ("torchvision:mobilenet_v2", "4x", "auto"),
    "densenet121": ("torchvision:densenet121", "4x", "none"),
    "ddpm_unet": ("redistill:ddpm_unet", "1.13MiB", "auto"),
}


def describe(student, inputs):
    """One line a node: name, operation, target and, where it yields a tensor, the shape."""
    values = record_graph(student, inputs).values
    for node in student.graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        shape = values.get(node.name)
        yield " ".join([node.name, node.op, target, "x".join(map(str, shape)) if isinstance(shape, tuple) else "-"])


@pytest.mark.parametrize("name", STUDENTS)
def test_the_graph_of_a_student_is_the_golden_one(name, request):
    spec, budget, taps = STUDENTS[name]
    with torch.random.fork_rng():
        model = load_model(spec, "random")
    inputs = example_inputs(spec, model)
    found = "\n".join(describe(redistill.transform(model, inputs, budget, taps=taps).eval(), inputs)) + "\n"
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--regenerate"):
        file.write_text(found)
    assert found == file.read_text(), (
        "the student is another; if that is meant: pytest tests/test_golden.py --regenerate"
    )

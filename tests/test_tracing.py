import operator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from redistill.errors import ModelError, TraceError
from redistill.tracing.capture import capture
from redistill.tracing.copying import meta_copy
from redistill.tracing.skeleton import build_graph_module
from redistill.tracing.tracer import trace_graph


def trace(module, *inputs):
    graph, opaque, skeleton = trace_graph(module, inputs)
    return build_graph_module(module, graph, skeleton), opaque


class ShapeControlFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        batch, channels, height, width = x.shape
        if height % 2 or isinstance(x, str):
            x = F.pad(x, (0, 0, 0, 1))
        for _ in range(len(x.shape) - 2):
            x = torch.relu(x)
        scale = torch.ones(batch, channels, 1, 1)
        return self.conv(x * scale).view(batch, -1, height * width)


def test_control_flow_on_shapes_is_answered_and_sizes_stay_nodes():
    module = ShapeControlFlow().eval()
    graph_module, opaque = trace(module, torch.randn(1, 3, 8, 8))
    assert opaque == {}
    for shape in ((1, 3, 8, 8), (2, 3, 12, 10)):
        x = torch.randn(shape)
        assert torch.equal(graph_module(x), module(x))


def test_control_flow_is_recorded_as_a_guard_with_its_place():
    graph, _, _ = trace_graph(ShapeControlFlow().eval(), (torch.randn(1, 3, 8, 8),))
    guards = {node.name: node.meta["guard"] for node in graph.nodes if "guard" in node.meta}
    assert [guard.value for guard in guards.values()] == [False]
    assert all("test_tracing.py:" in guard.where for guard in guards.values())


def test_in_place_sums_stay_in_place():
    class Shortcut(nn.Module):
        def forward(self, x):
            y = torch.relu(x)
            y += x
            return y

    graph, _, _ = trace_graph(Shortcut(), (torch.randn(1, 2, 4, 4),))
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [torch.relu, operator.iadd]


def test_leaves_are_torch_layers_their_subclasses_and_childless_modules_that_read_training():
    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(super().forward(x))

    class Drop(nn.Module):
        def forward(self, x):
            return x * 0.5 if self.training else x

    module = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), Drop())
    graph_module, _ = trace(module, torch.randn(2, 3, 8, 8))
    assert [str(n.target) for n in graph_module.graph.nodes if n.op == "call_module"] == ["0", "1", "2"]


def test_what_cannot_be_traced_through_becomes_one_leaf():
    class DataDependent(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), DataDependent()))
    with pytest.raises(TraceError, match=r"cannot be traced.*test_tracing\.py:\d+"):
        trace(module, torch.randn(1, 3, 8, 8))  # even as a leaf it has no value without data

    class UntraceableIndex(nn.Module):
        def forward(self, x):
            return x[:, [int(i) for i in range(2)]] if {x: 1} and hasattr(x, "storage_offset") and iter(x) else x

    graph_module, _ = trace(nn.Sequential(UntraceableIndex()), torch.randn(1, 3, 8, 8))
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(graph_module(x), x[:, [0, 1]])


def test_the_teacher_is_untouched():
    module = torchvision.models.resnet18(weights=None)
    module.layer1.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = {name: part.training for name, part in module.named_modules()}
    capture(module, (torch.randn(1, 3, 64, 64),))
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_skeleton_copies_no_weight():
    skeleton = meta_copy(torchvision.models.resnet18(weights=None))
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert {b.device.type for b in skeleton.buffers()} == {"meta"}


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", "densenet121", "swin_t", "googlenet", "lraspp_mobilenet_v3_large"]
)
def test_torchvision_graphs_equal_their_models_atother_sizes(name):
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    if name.startswith("lraspp"):
        options = {"weights_backbone": None}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    graph_module = capture(model, (torch.randn(1, 3, 96, 96),)).graph_module
    x = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        expected, found = model(x), graph_module(x)
    assert torch.equal(expected["out"], found["out"]) if isinstance(expected, dict) else torch.equal(expected, found)


def test_several_inputs_and_structured_outputs():
    class TwoInputs(nn.Module):
        def forward(self, image, offset, scale=2.0):
            return {"sum": image + offset[:, None, None, None], "parts": (image * scale, offset)}

    module = TwoInputs()
    inputs = (torch.randn(2, 3, 4, 4), torch.tensor([1.0, 2.0]))
    graph_module, _ = trace(module, *inputs)
    expected, found = module(*inputs), graph_module(*inputs)
    assert torch.equal(expected["sum"], found["sum"])
    assert all(torch.equal(a, b) for a, b in zip(expected["parts"], found["parts"], strict=True))


def test_where_train_mode_computes_something_else_the_eval_graph_is_taken_with_a_note():
    class Baked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)
            self.inner = nn.Sequential(nn.ReLU())

        def forward(self, x):
            x = self.conv(x)
            return self.inner(x) if self.training else torch.tanh(x)

    module, x = Baked(), torch.randn(2, 3, 8, 8)
    captured = capture(module, (x,))
    assert torch.equal(captured.graph_module.train()(x), module.eval()(x))
    assert "train mode computes something else from tanh (Baked) on" in captured.notes[0]


def test_auxiliary_heads_used_in_training_only_are_left_out_with_a_note():
    model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    captured = capture(model, (torch.randn(2, 3, 96, 96),))
    assert "aux1.conv.conv" in captured.notes[0]
    assert "used in training only" in captured.notes[0]


def test_functional_dropout_follows_the_mode():
    class Dropping(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, training=self.training)

    graph_module = capture(Dropping(), (torch.ones(1, 1, 32, 32),)).graph_module
    x = torch.ones(1, 1, 32, 32)
    assert torch.equal(graph_module.eval()(x), x)
    assert (graph_module.train()(x) == 0).any()


def test_hidden_strided_convolution_is_refused_with_module_and_line():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, x):
            with torch.autocast("cpu"):
                return self.down(x)

    with pytest.raises(
        TraceError, match=r"0 \(Hidden\) cannot be traced through: .*test_tracing\.py:\d+.* hides 0\.down"
    ):
        capture(nn.Sequential(Hidden()), (torch.randn(1, 3, 8, 8),))


def test_an_input_that_does_not_fit_the_model_is_named_with_its_shape():
    with pytest.raises(ModelError, match=r"ResNet does not run on an input of 1x1x64x64"):
        capture(torchvision.models.resnet18(weights=None), (torch.randn(1, 1, 64, 64),))


def test_constants_made_in_forward_travel_with_the_graph():
    class WithConstant(nn.Module):
        def forward(self, x):
            return x * torch.arange(3.0)[:, None, None]

    graph_module, _ = trace(WithConstant(), torch.randn(1, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(graph_module(x), x * torch.arange(3.0)[:, None, None])


class FillsWithAConstant(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.strides = nn.Conv2d(3, 4, 3, 2, 1), torch.tensor([8.0, 16.0])

    def forward(self, x):
        x = self.conv(x)
        return x.flatten(2) * x.new_full((x.shape[2] * x.shape[3],), self.strides[1])


def test_a_fill_value_read_from_a_constant_tensor_is_a_number():
    module, x = FillsWithAConstant().eval(), torch.randn(1, 3, 16, 16)
    assert torch.allclose(capture(module, x).graph_module(x), module(x))

"""Int8 after training: what is quantised, what it computes, and what is refused."""

import operator
import sys

import pytest
import torch
from torch import nn

import redistill
from redistill.models.red_block import REDBlock
from redistill.quantization import QuantizationError, quantize
from redistill.quantization.lowering import lower_to_aten

pytest.importorskip("executorch")
pytest.importorskip("torchao")


class Small(nn.Module):
    """A stem, a RED block before a norm that cannot be folded, a depthwise block with a skip, a head with dropout."""

    def __init__(self, eps=1e-5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.red = REDBlock(8)
        self.norm = nn.BatchNorm2d(8, eps=eps)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.conv_norm = nn.BatchNorm2d(8, eps=eps)
        self.activation = nn.ReLU6(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.activation(self.norm(self.red(self.stem(x))))
        x = x + self.activation(self.conv_norm(self.conv(x)))
        return self.fc(self.dropout(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))


def small(**options):
    torch.manual_seed(0)
    model = Small(**options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.05, 0.5)
            module.running_mean.normal_(0, 0.1)
            nn.init.normal_(module.bias, 0.5, 0.3)
    return model.eval()


def images(count, seed=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


EXAMPLE = images(1)


@pytest.fixture(scope="module")
def program():
    return quantize(small(), images(64).split(16), EXAMPLE)


def count(graph_module, name):
    return sum(name in str(node.target) for node in graph_module.graph.nodes)


def relative_error(first, second):
    return ((first - second).norm() / second.norm()).item()


def test_int8_computes_nearly_what_the_network_does_at_any_batch_size(program):
    with torch.no_grad():
        for size in (1, 7):
            assert relative_error(program(images(size, 2)), small()(images(size, 2))) < 0.03


def test_the_network_is_not_changed():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantize(model, [images(4)], EXAMPLE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_are_int8_with_one_scale_a_channel(program):
    assert count(program, "dequantize_per_channel") == 6  # stem, gate, residual, the lone norm, conv, fc
    weights = [value for value in program.buffers() if value.dtype == torch.int8]
    assert sorted(value.numel() for value in weights) == [8, 32, 64, 72, 216, 576]
    stem = next(value for value in weights if value.numel() == 216)
    assert stem.flatten(1).abs().amax(1).tolist() == [127] * 8


def test_no_value_takes_a_needless_way_through_floating_point(program):
    assert count(program, "batch_norm") == count(program, "dropout") == 0
    for node in program.graph.nodes:
        if "hardtanh" in str(node.target):  # fused into the operation before it
            assert "conv2d" in str(node.args[0].target)
        if "quantize_per_tensor" in str(node.target) and "dequantize" not in str(node.target):
            assert "dequantize" not in str(node.all_input_nodes[0].target)
    between = [node for node in program.graph.nodes if "sigmoid" in str(node.target)]
    assert len(between) == 1
    assert all("mul" in str(user.target) for q in between[0].users for dq in q.users for user in dq.users)


def test_a_norm_of_another_epsilon_is_folded_exactly():
    model = small(eps=1e-2)
    graph_module = lower_to_aten(model, (EXAMPLE,))
    with torch.no_grad():
        torch.testing.assert_close(graph_module(images(3)), model(images(3)), rtol=1e-4, atol=1e-5)


def test_gradients_reach_weights_and_norms_through_the_folding():
    graph_module = lower_to_aten(small(), (EXAMPLE,))
    graph_module(images(3)).sum().backward()
    found = {name for name, value in graph_module.named_parameters() if value.grad is not None}
    assert found == {name for name, _ in small().named_parameters()}


def test_it_can_be_exported_again(program):
    again = torch.export.export(program, (EXAMPLE,)).module()
    with torch.no_grad():
        torch.testing.assert_close(again(EXAMPLE), program(EXAMPLE))


def test_chosen_modules_stay_in_floating_point():
    program = quantize(small(), [images(8)], EXAMPLE, float_modules=["fc", "red.gate_conv"])
    assert count(program, "dequantize_per_channel") == 4
    with torch.no_grad():
        assert relative_error(program(images(4)), small()(images(4))) < 0.03


def test_a_student_with_its_taps():
    from tests.trainers.small_networks import small_resnet

    student = redistill.transform(small_resnet(), EXAMPLE, budget="2x").eval()
    program = quantize(student, images(16).split(8), EXAMPLE)
    with torch.no_grad():
        assert relative_error(program(images(4)), student(images(4))) < 0.1


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(x.reshape(1, 8))


def test_a_fixed_batch_size_is_kept():
    example = torch.randn(1, 2, 4)
    assert quantize(Fixed(), [example], example)(example).shape == (1, 2)


class Unexportable(nn.Module):
    def forward(self, x):
        return x * float(x.sum().item())


@pytest.mark.parametrize(
    ("model", "calibration", "options", "words"),
    [
        (small, [], {}, "there is no batch"),
        (small, [images(2)[..., :8]], {}, "Nx3x16x8 float32, and the model's input Nx3x16x16"),
        (small, [images(2).double()], {}, "float64"),
        (small, [images(2)], {"float_modules": ["head"]}, "no module 'head'"),
        (Unexportable, [images(2)], {}, "Unexportable cannot be exported for inputs 1x3x16x16"),
    ],
)
def test_what_cannot_be_quantised_is_one_line(model, calibration, options, words):
    with pytest.raises(QuantizationError) as caught:
        quantize(model(), calibration, EXAMPLE, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.quantizer.xnnpack_quantizer", None)
    with pytest.raises(QuantizationError, match=r"int8 needs .*pip install 'redistill\[export\]'"):
        quantize(small(), [images(2)], EXAMPLE)


def test_xnnpack_takes_the_whole_network_and_computes_the_same(program):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.export(program, (EXAMPLE,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    called = [node.target for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    assert [str(target) for target in called] == ["executorch_call_delegate", str(operator.getitem)]
    buffer = lowered.to_executorch().buffer
    loaded = Runtime.get().load_program(buffer)  # a method reads both as long as it runs, and keeps neither
    found = loaded.load_method("forward").execute([EXAMPLE])[0].clone()
    assert relative_error(found, program(EXAMPLE)) < 0.03

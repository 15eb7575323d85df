"""Each kind of thing that people write in a forward: it works, or is refused with its true cause. No process dies."""

import functools
import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import fake_quantize, observer
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import redistill
from redistill.errors import ModelError, TraceError
from redistill.tracing.capture import capture

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions, what ``between`` does, and a head."""

    def __init__(self, between=lambda self, y: y, **parts):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Linear(6, 5)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.b(self.between(self, self.a(x)).relu()).mean((2, 3)))


def same(module, inputs=X):
    """Capture, and compare with the module itself at another size."""
    captured = capture(module.eval(), inputs[:1])
    other = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = module(other)
        torch.manual_seed(3)
        assert torch.allclose(captured.graph_module(other), expected, atol=1e-6)
    return captured


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))


class Unchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


@torch.jit.script
def scripted(x):
    return x * torch.sigmoid(x)


class Around(nn.Module):
    """A module around a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


SEEN_THROUGH = {
    "autograd.Function": Swish.apply,
    "one that returns its input": Unchanged.apply,
    "Variable": torch.autograd.Variable,
    "checkpoint": lambda x: checkpoint(torch.sin, x, use_reentrant=False),
    "reentrant checkpoint": lambda x: checkpoint(torch.sin, x, use_reentrant=True),
    "a module made in the forward": lambda x: nn.MaxPool2d(3, 1, 1)(nn.SiLU()(x)),
    "a NumPy number": lambda x: x * np.float32(2) + np.sqrt(2),
    "device and dtype of the map": lambda x: x + torch.ones(1, device=x.device, dtype=x.dtype),
    "a branch on the device": lambda x: x if x.is_meta or x.device.type == "meta" else x * 2,
    "a size as a number": lambda x: F.pad(
        x, (0, int(x.shape[-1]) % 3, 0, math.ceil(x.shape[-2] / 5) * 5 - x.shape[-2])
    ),
    "the square root of a size": lambda x: x.flatten(2).reshape(*x.shape[:2], -1, int(math.sqrt(x.shape[3] ** 2))),
    "a power of sizes": lambda x: F.adaptive_avg_pool2d(x, int((x.shape[2] * x.shape[3]) ** 0.5)),
    "sizes by max and min": lambda x: F.adaptive_avg_pool2d(x, (max(x.shape[2] // 2, 4), min(x.shape[3], 7))),
    "unpacked sizes": lambda x: (lambda b, c, *s: x.reshape(b * c, *s).view((b, c, *s)))(*x.shape),
    "iteration": lambda x: torch.stack(list(x.unbind(1)), 1),
    "a shape compared": lambda x: x if x.shape == torch.Size((9, 9)) else -x,
    "factories of sizes": lambda x: x + torch.arange(x.shape[-1]) + torch.zeros(x.shape[2:]) + x.new_ones(x.size(-1)),
    "a size in a message": lambda x: x if x.shape[2] % 4 == 0 else f"{x.shape[2]} is no multiple of 4",
    "a mask made of sizes": lambda x: x if torch.ones(x.shape[2:], device=x.device).bool().all() else -x,
    "places that constants decide": lambda x: x + torch.ones(3, 3).triu().nonzero().sum(),
    "memory that is freed": lambda x: (y := x + 1, y * 2, y.set_())[1],
    "in place": lambda x: x.clone().add_(1).mul_(2),
    "always random": lambda x: F.dropout(x, 0.3, training=True) + torch.randn_like(x),
}


@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_what_can_be_seen_through_is(name):
    function = SEEN_THROUGH[name]
    captured = same(Net(lambda self, y: function(y)))
    assert captured.notes == ()


def test_a_function_whose_own_backward_is_lost_is_named():
    class Reversed(Net):
        def forward(self, x):
            return super().forward(Unchanged.apply(x))

    assert same(Reversed()).notes == ("Unchanged is inlined: its forward as it is, its gradient that of its forward",)


PAST_PYTHON = {
    "TorchScript": scripted,
    "a TorchScript module": torch.jit.script(nn.Sequential(nn.Sigmoid())),
    "vmap": torch.func.vmap(torch.sin),
}


@pytest.mark.parametrize("name", PAST_PYTHON)
def test_operators_past_python_are_recorded(name):
    function = PAST_PYTHON[name]
    for _ in range(3):  # TorchScript changes what it runs after the first calls
        assert same(Net(lambda self, y: function(y))).notes == ()


def test_what_cannot_be_seen_through_stays_one_node_of_its_module():
    class Cast(nn.Module):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return (x @ x.mT).float().mean((2, 3), keepdim=True)

    captured = same(Net(lambda self, y: y * self.cast(y), cast=Cast()))
    assert "cast stays one node: the forward switches torch.autocast on" in captured.notes[0]

    def derivative(x):
        return torch.func.jvp(torch.sin, (x,), (x,))[1]

    captured = same(Net(lambda self, y: self.act(y), act=Around(derivative)))
    assert "act stays one node: a tensor comes out of code that the trace cannot see into" in captured.notes[0]
    with pytest.raises(TraceError, match=r"cannot see into \(.*\.py:\d+\)\. Move that line into a module"):
        capture(Net(lambda self, y: derivative(y)).eval(), X)


def test_a_compiled_part_is_inlined_and_a_compiled_model_is_its_original():
    same(Net(lambda self, y: self.act(y), act=torch.compile(Around(torch.sin), backend="eager")))
    net = Net()
    captured = capture(torch.compile(net, backend="eager").eval(), X)
    assert [str(n.target) for n in captured.graph_module.graph.nodes if n.op == "call_module"][:2] == [
        "_orig_mod.a",
        "_orig_mod.b",
    ]


def test_an_exported_module_is_traced():
    module = torch.export.export(Net().eval(), (X,)).module()
    assert capture(module, X).graph_module(X).shape == (2, 5)


@pytest.mark.parametrize(
    "wrap", [lambda m: m, torch.fx.symbolic_trace, lambda m: nn.Sequential(torch.fx.symbolic_trace(m))]
)
def test_a_size_that_does_not_fit_prints_nothing(wrap, capfd):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x):
            return self.conv(x).reshape(x.shape[0], 4 * 16 * 16)

    assert capture(wrap(Model()), X).graph_module(X).shape == (2, 1024)
    assert capfd.readouterr().err == ""


def test_sizes_that_are_tried_and_do_not_fit_print_nothing(capfd):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mean = nn.Conv2d(3, 16, 3, 2, 1), nn.Parameter(torch.zeros(3, 1, 1))

        def forward(self, x):
            return self.conv(x - self.mean).mean((2, 3))

    redistill.transform(Model().eval(), X, factors=[2], taps="none")
    assert capfd.readouterr().err == ""


def test_forms_without_python_modules_or_weights_are_refused_with_what_to_give():
    with pytest.raises(ModelError, match=r"TorchScript module holds no Python modules.*give the model that was"):
        capture(torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 3)), X), X)
    with pytest.raises(ModelError, match=r"1 \(RecursiveScriptModule\) is TorchScript.*give what it was scripted from"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Conv2d(4, 4, 3))), X)
    with pytest.raises(ModelError, match=r"0 \(LazyConv2d\) is lazy.*run the model once"):
        capture(nn.Sequential(nn.LazyConv2d(4, 3)), X)
    prepared = torch.ao.nn.quantized.FloatFunctional()  # of a model that may be quantised, but is not
    assert same(Net(lambda self, y: self.sum.add(y, y), sum=prepared))
    quantised = torch.ao.nn.quantized.Conv2d(3, 4, 3)
    with pytest.raises(ModelError, match=r"0 \(Conv2d\) is quantised.*before quantisation"):
        capture(nn.Sequential(quantised), X)


@pytest.mark.parametrize("part", [observer.MinMaxObserver, fake_quantize.FakeQuantize])
def test_a_model_prepared_for_quantisation_is_refused_with_what_to_give(part):
    with pytest.raises(ModelError, match=rf"1 \({part.__name__}\).*before it is prepared, and quantise the student"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 3), part()), X)


def test_what_a_model_holds_is_read_where_it_can_be():
    scale = torch.tensor([3.0, 4.0])
    same(Net(lambda self, y: y * y.new_full((1,), self.scale[1].item()), scale=scale))
    same(Net(lambda self, y: y * y.new_full((1, 1, 1, 1), self.scale[0]), scale=scale))
    same(Net(lambda self, y: y.to(next(self.parameters()).device) + torch.zeros(1).to(self.head.weight)))
    same(Net(lambda self, y: y + torch.zeros(1, device=self.head.weight.device, dtype=self.head.weight.dtype)))
    module = Net(lambda self, y: y * 2 if (self.steps + 1).item() > 4 else y)
    module.register_buffer("steps", torch.tensor(4))
    same(module)
    with pytest.raises(TraceError, match=r"item\(\) reads the value of a tensor \(.*Control flow that depends on"):
        capture(Net(lambda self, y: y if y.sum().item() > 0 else -y).eval(), X)


def test_what_cannot_be_copied_is_shared():
    def remember(self, y):
        self.features = [y]
        return y

    module = Net(remember, lock=threading.Lock(), bound=None)
    module.bound = functools.partial(module.forward)
    module(X)  # leaves a map with gradients in a list
    kept = module.features[0]
    same(module)
    assert redistill.transform(module, X, factors=[1] * 2, taps="none")(X).shape == (2, 5)
    assert kept.shape == (2, 4, 16, 16)


def test_caches_and_counters_of_the_model_do_not_move():
    class Cached(Net):
        def forward(self, x):
            self.calls += 1
            self.smallest = min(self.smallest, x.shape[-1])
            self.seen[tuple(x.shape)] = x
            return super().forward(x)

    module = Cached(smallest=10_000, seen={}).eval()
    module.register_buffer("calls", torch.zeros(()))
    capture(module, X)
    redistill.measure(module, X)
    redistill.profile(module, X, "eager")
    assert (module.calls.item(), module.smallest, module.seen) == (0, 10_000, {})


def test_hooks_run_within_the_graph():
    module = Net()
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2 - 1,))
    module.b.register_forward_hook(lambda module, inputs, output: output.abs())
    module.register_forward_hook(lambda module, inputs, output: output.softmax(1))
    same(module)


def enclosing(module):
    return lambda _, given, output: module.kept.__setitem__("mid", output)


def by_default(module):
    def keep(_, given, output, kept=module.kept):
        kept["mid"] = output

    return keep


def wrapped(module):
    keep = enclosing(module)
    return lambda *args: keep(*args)


@pytest.mark.parametrize("hook", [enclosing, by_default, wrapped])
@pytest.mark.parametrize("used_before", [False, True])
def test_a_hook_that_keeps_maps_keeps_those_of_the_graph_and_not_the_teachers(hook, used_before):
    module = Net(lambda self, y: y + self.kept["mid"].mean(), kept={}).eval()
    module.a.register_forward_hook(hook(module))
    if used_before:
        module(X)
    before = dict(module.kept)
    student = redistill.transform(module, X, factors=[1] * 2, taps="none")
    assert module.kept == before
    assert torch.allclose(student(X), module(X), atol=1e-5)


def test_autocast_in_the_forward_is_named():
    class Cast(Net):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    with pytest.raises(TraceError, match=r"switches torch.autocast on.*Leave autocast to the caller"):
        capture(Cast().eval(), X)


TRAIN_ONLY = {
    "drop connect": lambda self, y: y / 0.8 * torch.floor(0.8 + torch.rand(len(y), 1, 1, 1)) if self.training else y,
    "noise": lambda self, y: y + torch.randn_like(y) if self.training else y,
    "a check of values": lambda self, y: y if not self.training or y.sum() > -1e9 else -y,
    "decoding": lambda self, y: y if self.training else y.softmax(1),
}


@pytest.mark.parametrize("name", TRAIN_ONLY)
def test_the_graph_is_that_of_eval_mode_with_a_note(name):
    captured = same(Net(TRAIN_ONLY[name]))
    assert "does in train mode what it does in eval mode" in captured.notes[0]


def test_a_batch_norm_of_ones_own_behind_a_global_pool_needs_no_second_image():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    module = Net(lambda self, y: y * self.norm(y.mean((2, 3), keepdim=True)), norm=Own(4))
    assert same(module).notes == ()


WEIGHTS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": torch.nn.utils.weight_norm,
    "old spectral_norm": torch.nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_normalised_weights_stay_normalised_in_the_student(name):
    wrap = WEIGHTS[name]
    layers = [wrap(nn.Conv2d(3, 24, 3, 2, 1)), nn.ReLU(), wrap(nn.Conv2d(24, 32, 3, 2, 1)), nn.AdaptiveAvgPool2d(1)]
    teacher = nn.Sequential(*layers, nn.Flatten()).eval()
    student = redistill.transform(teacher, X[:1], "2x", taps="none")
    assert student.state_dict().keys() == teacher.state_dict().keys()
    student.train()(X).sum().backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", [*WEIGHTS, "pruned"])
def test_a_tail_with_a_computed_weight_returns_to_the_teachers_grid(name):
    wrap = WEIGHTS.get(name, lambda layer: prune.l1_unstructured(layer, "weight", 0.3))
    tail = wrap(nn.Conv2d(16, 3, 3, padding=1))
    teacher = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), tail).eval()
    student = redistill.transform(teacher, X[:1], factors=(2,), taps="none").eval()
    twin = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1), nn.Upsample(scale_factor=2)
    )
    twin[0].load_state_dict(teacher[0].state_dict())
    teacher(X[:1])  # old hooks make the weight when they run
    twin[2].load_state_dict({"weight": tail.weight, "bias": tail.bias})
    torch.testing.assert_close(student(X), twin(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_blocks_take_the_teachers_type(dtype):
    layers = [nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.AdaptiveAvgPool2d(1)]
    teacher = nn.Sequential(*layers, nn.Flatten()).eval().to(dtype)
    student = redistill.transform(teacher, X[:1].to(dtype), "2x", taps="auto")
    assert student.taps
    assert {p.dtype for p in student.parameters()} == {dtype}


def test_outputs_are_compared_relative_to_the_largest():
    large = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.AvgPool2d(16), nn.Flatten(), nn.Linear(16, 50))
    with torch.no_grad():
        large[3].weight.mul_(1e6)
    capture(large.eval(), X)


def test_a_model_that_differs_from_run_to_run_is_told_so():
    ticks = iter(range(1000))
    with pytest.raises(TraceError, match="something else each time it runs"):
        capture(Net(lambda self, y: y * float(next(ticks))).eval(), X)


@functools.lru_cache
def halves(sizes):
    return tuple(size // 2 for size in sizes)


def to_halves(x, pattern):
    """Lays out a map by a pattern."""
    return x[..., : tuple(x.shape)[-1] // 2] if pattern == "b c h w" else x


to_halves.__module__ = "einops.einops"


def test_layouts_by_a_pattern_are_one_operation():
    class Patterned(Net):
        def forward(self, x):
            return super().forward(to_halves(x, "b c h w"))

    captured = same(Patterned())
    assert [n.target for n in captured.graph_module.graph.nodes if n.target is to_halves] == [to_halves]
    assert not any("guard" in n.meta for n in captured.graph_module.graph.nodes)


def test_a_trace_leaves_nothing_in_a_cache_of_the_teachers():
    halves.cache_clear()
    same(Net(lambda self, y: F.adaptive_avg_pool2d(y, halves(tuple(y.shape[2:])))))
    assert halves.cache_info().currsize == 3  # the runs at other sizes, two of the checks and ours
    assert {type(side) for side in halves((24, 20))} == {int}


def kept(function):
    """Keeps results in a cache that it holds itself, as libraries do for methods."""
    cached = functools.lru_cache(function)

    @functools.wraps(function)
    def call(*args):
        return cached(*args)

    return call


class Cached(Net):
    @functools.lru_cache  # noqa: B019 -- as it must not be written, and is
    def ramp(self, side):
        return torch.linspace(0, 1, side)

    @staticmethod
    @kept
    def grid(sides):
        return torch.ones(sides).cumsum(0)

    @classmethod
    @functools.lru_cache
    def half(cls, side):
        return torch.arange(side) / 2

    def forward(self, x):
        y = super().forward(x)
        return y + self.ramp(y.shape[-1]) + self.grid(tuple(y.shape[-2:])) + self.half(y.shape[-1])


def test_a_teacher_whose_methods_cache_tensors_still_runs_after_a_trace():
    teacher = Cached().eval()
    with torch.no_grad():
        expected = teacher(X)
        for cache in (Cached.ramp, Cached.half.__func__, Cached.grid.__closure__[0].cell_contents):
            cache.cache_clear()
        for _ in range(2):
            capture(teacher, X)
        assert torch.equal(teacher(X), expected)


def test_checks_on_sizes_meant_for_compilers_are_guards():
    def check(self, y):
        torch._check(y.shape[-1] * 2 < 100)
        torch._check_with(ValueError, y.shape[1] == 4, lambda: "four channels")
        return y

    captured = same(nn.Sequential(Net(check)))
    assert not captured.notes
    guards = [n.meta["guard"].value for n in captured.graph_module.graph.nodes if "guard" in n.meta]
    assert guards == [True, True]


def test_a_function_that_holds_itself_is_rebound():
    def halved(x, times):
        return x if times == 0 else halved(F.avg_pool2d(x, 2, math.ceil(2)), times - 1)

    class Halving(nn.Module):
        def forward(self, x):
            return self.halve(x, 2)

    holder = Halving()
    holder.halve = halved
    same(nn.Sequential(holder, Net()))


def test_text_of_a_size_is_read_where_it_is_the_key_of_a_cache():
    tables = {}

    class Keyed(Net):
        def forward(self, x):
            key = f"{x.shape[2]}x{x.shape[3]}"
            if key not in tables:
                tables[key] = torch.full((1,), float(len(tables)))
            return super().forward(x) + tables[key]

    network = Keyed().eval()
    captured = capture(network, X[:1])
    assert torch.equal(captured.graph_module(X[:1]), network(X[:1]))
    assert any("guard" in node.meta for node in captured.graph_module.graph.nodes)


def test_a_forward_that_spoils_its_own_gradient_is_refused():
    def spoil(_, x):
        squared = x * x
        squared[:, :1] = squared[:, 1:2] * squared[:, 2:3]
        squared[:, 1:2] = squared[:, 2:3] * squared[:, :1]
        return squared

    with pytest.raises(TraceError, match="writes into values that its gradient needs"):
        capture(Net(spoil), X[:1])


def test_writes_that_leave_the_gradient_alone_are_taken_frozen_weights_or_not():
    def write(_, x):
        found = torch.zeros_like(x)
        found[:, :2] = x[:, 2:]
        return found

    network = Net(write)
    network.a.requires_grad_(False)
    same(network)


def test_a_branch_on_sizes_holds_where_it_was_taken():
    def even(self, y):
        return y if y.shape[-1] > 20 else -y

    module = Net(even).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(capture(module, images).graph_module(images), module(images))


def test_a_pool_over_the_whole_map_is_checked_before_it_becomes_global():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(16), nn.Flatten()).eval()
    graph_module = capture(module, X).graph_module
    assert isinstance(graph_module.get_submodule("1"), nn.AdaptiveAvgPool2d)


def test_a_model_that_runs_on_nothing_is_the_models_fault():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).half().eval()
    with pytest.raises(ModelError, match="does not run on an input of 2x3x32x32"):
        capture(module, X)


def test_eager_profiles_of_steps_that_depend_on_data_are_measured():
    module = Net(lambda self, y: y if torch.isfinite(y).all() else 0 * y).eval()
    assert redistill.profile(module, X, "eager").peak_bytes == redistill.measure(module, X)


def test_eager_profiles_count_a_filled_cache_and_plain_tensors_as_the_meter_does():
    def cached(self, y):
        if "bias" not in self.cache:
            self.cache["bias"] = torch.ones(1, 4, 200, 200)
        return y + self.cache["bias"].mean() + self.plain

    module = Net(cached, cache={}, plain=torch.ones(1)).eval()
    assert redistill.profile(module, X, "eager").peak_bytes == redistill.measure(module, X)
    assert module.cache == {}


class Kept:
    """What keeps the output of a layer, as libraries of segmentation do."""

    def __init__(self, module):
        self.value, self.handle = None, module.register_forward_hook(self.keep)

    def keep(self, module, given, output):
        self.value = output


class HookedUNet(nn.Module):
    """A decoder that takes its skip from what a hook has kept of the encoder."""

    def __init__(self, of_a_layer):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.Sequential(nn.ReLU()), nn.Conv2d(16, 32, 3, 2, 1))
        self.last, self.kept = nn.Conv2d(48, 2, 3, 1, 1), Kept(self.encoder[0 if of_a_layer else 1])

    def forward(self, x):
        up = nn.functional.interpolate(self.encoder(x).relu(), scale_factor=2)
        return self.last(torch.cat([up, self.kept.value], 1))


@pytest.mark.parametrize("of_a_layer", [False, True])
@pytest.mark.parametrize("used_before", [False, True])
def test_skips_that_hooks_keep_are_pooled_and_the_teacher_keeps_its_own(of_a_layer, used_before):
    module = HookedUNet(of_a_layer).eval()
    if used_before:
        module(X)
    before = module.kept.value
    student = redistill.transform(module, X, budget="2x")
    assert module.kept.value is before
    assert student.plan.factors == (2, 1)
    assert student(X).shape == (2, 2, 32, 32)

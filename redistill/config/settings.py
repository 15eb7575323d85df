"""What can be set: one frozen dataclass a section. Defaults are the recipe that we recommend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from redistill.config.checks import (
    AboveZero,
    AreaShare,
    Count,
    Factor,
    Inside,
    NotNegative,
    Padding,
    Positive,
    Section,
    Share,
    ShareBelowOne,
    Side,
    TwoOrMore,
    Workers,
    require,
)
from redistill.config.recipes import RecipeConfig

Precision = Literal["no", "bf16", "fp16"]


RESERVED = frozenset({"teacher", "student", "checkpoints", "int8", "tensorboard"})
"""Names in a run's folder that no further teacher can have."""


def check_teacher_name(name: str) -> None:
    """Refuse a teacher's name that would not do as a folder's within the run's.

    Raises:
        ConfigError: naming it.
    """
    require(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name) is not None and name not in RESERVED,
        f"teachers.{name[:64]}: a name is of letters, digits, _ and -, and none of {', '.join(sorted(RESERVED))}",
    )


@dataclass(frozen=True)
class AugmentationConfig(Section):
    """Random changes of training images; all off is a plain resize.

    Attributes:
        crop: random_resized (area share in `scale`), padded (shifted by up to `padding` pixels), or none.
        policy: a torchvision policy of random operations.
        erasing: probability of blanking a rectangle.
    """

    place: ClassVar[str] = "augmentation"

    crop: Literal["none", "random_resized", "padded"] = "none"
    scale: tuple[AreaShare, ...] = (0.08, 1.0)
    padding: Padding = 4
    flip: bool = False
    policy: Literal["none", "trivial", "randaugment", "autoaugment"] = "none"
    erasing: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = len(self.scale) == 2 and self.scale[0] <= self.scale[1]
        require(ordered, f"augmentation.scale={list(self.scale)}: give two shares, the smaller first")


@dataclass(frozen=True)
class DataConfig(Section):
    """The images.

    Attributes:
        name: a data set of ours (digits, keywords, fashion_mnist, cifar10, cifar100, stl10, celeba, imagenet,
            image_folder), or package.module:function, which takes this section and gives a redistill.data.Source.
        root: the folder that holds the data set, as torchvision lays it out.
        image_size: height and width in pixels.
        test_resize: the side to which test images are resized before the central crop of image_size.
        channels: 3 repeats grey images; 1 keeps them, and makes pictures of a folder grey.
        damaged: what is done about pictures that cannot be read: refuse to start, or skip them with a warning.
        cache: a folder for pictures that were decoded once, `auto` for the user's cache, or `none`.
        cache_limit: the most that is kept of one folder, in GiB; larger ones are decoded whenever they are asked for.
        attribute: for celeba, the attribute that divides the faces into two classes; one class without it.
        strong: augmentation of a second view of each training image, learnt beside the first (MLLD's recipe).
        validation: share of the training set put aside for validation, class by class.
        train_limit: use only so many training images, class by class.
    """

    place: ClassVar[str] = "data"

    name: str = "digits"
    root: str = "data"
    download: bool = False
    image_size: Side = 32
    test_resize: Side | None = None
    channels: Positive = 3
    attribute: str | None = None
    damaged: Literal["refuse", "skip"] = "refuse"
    cache: str = "auto"
    cache_limit: NotNegative = 8.0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[AboveZero, ...] = (0.5,)
    augmentation: AugmentationConfig = AugmentationConfig()
    strong: AugmentationConfig | None = None
    validation: Inside = 0.1
    train_limit: Positive | None = None
    test_limit: Positive | None = None
    split_seed: int = 0
    workers: Workers = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(
                len(values) in (1, self.channels),
                f"data.{name}={list(values)}: give one value, or {self.channels}, one for each of data.channels",
            )


@dataclass(frozen=True)
class TargetsConfig(Section):
    """What a classifier is asked to predict.

    Attributes:
        mixing: blend the images and labels of a batch by MixUp, CutMix or either.
        mixing_alpha: parameter of their Beta distribution.
    """

    place: ClassVar[str] = "targets"

    label_smoothing: ShareBelowOne = 0.0
    mixing: Literal["none", "mixup", "cutmix", "either"] = "none"
    mixing_alpha: AboveZero = 0.2


@dataclass(frozen=True)
class TeacherConfig(Section):
    """A network that teaches.

    Attributes:
        model: a model spec such as "torchvision:resnet50" or "package.module:function".
        weights: a state dict (safetensors, or torch's weights-only format), with `?key=NAME` after it where the file
            holds several. A file that does not exist yet is written, if there is a recipe.
        recipe: how the teacher is trained here where it has no weights.
        start: weights from which that training begins, instead of random ones: a checkpoint of others, tuned here.
        augmentation: of the images it is trained on, instead of the data's. Shifts by fewer pixels than a student's
            first stride help a teacher and hurt that student.
    """

    place: ClassVar[str] = "teacher"

    model: str = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.25"
    weights: str | None = None
    recipe: RecipeConfig | None = None
    start: str | None = None
    augmentation: AugmentationConfig | None = None


@dataclass(frozen=True)
class StudentConfig(Section):
    """The network that learns: the teacher's rewritten for a budget, a saved one, or the teacher's architecture itself.

    Attributes:
        budget: peak activation memory, such as "4x" or "512KiB"; none for the architecture as it is.
        factors: explicit pooling factors, one a stage, instead of a budget.
        lever: how the budget is met: by pooling, by patches (the same outputs, piece by piece), by both; or, to
            compare with, by a smaller image (`resize`) or a narrower network (`prune`, needs Torch-Pruning). These two
            learn by methods that need no taps.
        folder: a saved student instead of either.
        model: an architecture of its own, instead of the teacher's; it starts from scratch or from `weights`.
        weights: a state dict of that architecture.
        taps: where RED blocks stand, which `red` needs: "none", "auto" (where the paper has them) or a file of places,
            packaged or your own.
        start: from the teacher's weights as they are, fitted to the student's grids (see `redistill.fit`), or from
            scratch.
        red_init: how RED blocks start: "gentle" is near the identity, "default" is the paper's; "light" is a cheaper
            block, with a gate of one channel and a depthwise residual.
        recalibrate: training batches on which batch-norm statistics are measured anew before training; 0 keeps the
            teacher's, and a saved student keeps its own.
        fit: training images to which a fitted start is fitted; their maps at one layer are in memory at once.
    """

    place: ClassVar[str] = "student"

    budget: str | None = "4x"
    factors: tuple[Factor, ...] | None = None
    lever: Literal["pool", "patches", "patches,pool", "resize", "prune"] = "pool"
    folder: str | None = None
    model: str | None = None
    weights: str | None = None
    convention: str = "deploy"
    objective: str = "macs"
    taps: str = "none"
    start: Literal["teacher", "fitted", "scratch"] = "teacher"
    red_init: Literal["gentle", "default", "light"] = "gentle"
    recalibrate: Count = 8
    fit: TwoOrMore = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.start != "fitted" or self.model is None,
            "student.start=fitted: only the teacher's own weights can be fitted; leave student.model out",
        )


@dataclass(frozen=True)
class DistillationConfig(Section):
    """The losses.

    Attributes:
        task: weight of the cross-entropy; 0 needs no labels.
        methods: method names with their options, or the shorthand "red+kd"; see --list.
        first_stage: epochs of the first stage of two-stage methods (ab, ft, fsp).
    """

    place: ClassVar[str] = "distillation"

    task: NotNegative = 1.0
    methods: dict[str, Any] = field(default_factory=dict)
    first_stage: Count = 30


@dataclass(frozen=True)
class QuantizationConfig(Section):
    """Int8 after the float epochs: the student is rounded, then trained rounded by the same losses and teachers.

    To go on from a student trained before, set student.folder and recipe.epochs=0.

    Attributes:
        epochs: passes over the training set with rounded weights and activations; 0 only rounds.
        learning_rate: at their start; it falls to zero by a cosine. All else is as in the float recipe.
        images: held-out training images from which activations get their first ranges.
        freeze: the last share of the steps, in which ranges stand still.
        float_modules: paths of modules that stay in floating point.
    """

    place: ClassVar[str] = "quantization"

    mode: Literal["none", "int8"] = "none"
    epochs: Count = 5
    learning_rate: AboveZero = 0.005
    images: Positive = 512
    freeze: ShareBelowOne = 0.25
    float_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunConfig(Section):
    """The machine's side: where results go, precision, checkpoints.

    Attributes:
        folder: the run's folder; by default runs/<experiment>.
        channels_last: whether maps lie in memory with their channels last; by default where convolutions are quicker
            so, which is decided when the run begins and kept in its folder.
        deterministic: torch's deterministic algorithms.
        sync_batchnorm: share batch-norm statistics between processes.
        log_every: steps between log lines; also how often losses are checked for NaN.
        checkpoint_every: steps between checkpoints besides the one after an epoch.
        save_every: epochs between checkpoints, 1 by default; the last epoch is always saved.
        keep: checkpoints that are kept, 2 or more.
        validate_every: epochs between validations; the last epoch is always validated.
        brief: at the end measure the last weights alone, neither the best validated ones nor the teacher.
    """

    place: ClassVar[str] = "run"

    folder: str | None = None
    seed: int = 0
    precision: Precision = "no"
    compile: bool = False
    channels_last: bool | None = None
    deterministic: bool = False
    sync_batchnorm: bool = True
    log_every: Positive = 10
    checkpoint_every: Positive | None = None
    save_every: Positive | None = None
    keep: TwoOrMore = 2
    validate_every: Positive = 1
    brief: bool = False


@dataclass(frozen=True)
class ExperimentConfig(Section):
    """What every experiment says. Further teachers, by name, are listened to by methods labelled `method@name`."""

    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    teachers: Mapping[str, TeacherConfig] = field(default_factory=dict)
    student: StudentConfig = StudentConfig()
    distillation: DistillationConfig = DistillationConfig()
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    quantization: QuantizationConfig = QuantizationConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.teachers:
            check_teacher_name(name)


@dataclass(frozen=True)
class ClassifierConfig(ExperimentConfig):
    """A whole classifier experiment."""

    trainer: Literal["classifier"] = "classifier"
    targets: TargetsConfig = TargetsConfig()

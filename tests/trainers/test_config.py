"""Configurations: what is read, what is refused and with which words."""

import pytest
import yaml

from redistill.config.denoiser import DenoiserConfig
from redistill.config.files import differences, load, packaged, read, resolved
from redistill.config.settings import ClassifierConfig
from redistill.distillation import METHODS, Distillation
from redistill.errors import ConfigError
from redistill.studies.comparison.runs import ComparisonConfig
from redistill.trainers.folder import RunFolder


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_values_types_and_exponents(tmp_path):
    path = write(tmp_path, "a.yaml", "recipe: {epochs: 3, optimizer: {weight_decay: 1e-4, betas: [0.9, 0.95]}}")
    config = load(ClassifierConfig, path)
    assert config.recipe.epochs == 3
    assert config.recipe.optimizer.weight_decay == 1e-4
    assert config.recipe.optimizer.betas == (0.9, 0.95)
    assert config.data == ClassifierConfig().data


def test_overrides_come_last(tmp_path):
    path = write(tmp_path, "a.yaml", "run: {seed: 1}")
    config = load(
        ClassifierConfig, path, ["run.seed=7", "student.budget=null", "student.factors=[2, 1]", "data.mean=[0.1]"]
    )
    assert (config.run.seed, config.student.budget, config.student.factors) == (7, None, (2, 1))
    assert config.data.mean == (0.1,)


@pytest.mark.parametrize(
    ("text", "methods"),
    [("red+kd", {"red": {}, "kd": {}}), ("none", {}), ("{kd: {temperature: 2}}", {"kd": {"temperature": 2}})],
)
def test_methods_by_shorthand_or_mapping(text, methods):
    assert load(ClassifierConfig, "digits/smoke.yaml", [f"distillation.methods={text}"]).distillation.methods == methods


def test_an_option_of_a_shorthand_can_be_set_afterwards():
    assignments = ["distillation.methods=red+kd", "distillation.methods.kd.temperature=2"]
    assert load(ClassifierConfig, "digits/smoke.yaml", assignments).distillation.methods == {
        "red": {},
        "kd": {"temperature": 2},
    }


def test_a_base_is_changed_section_by_section_and_its_methods_as_a_whole(tmp_path):
    base = write(tmp_path, "base.yaml", "run: {seed: 3, keep: 5}\ndistillation: {task: 0.5, methods: {red: {}}}")
    path = write(tmp_path, "a.yaml", f"base: {base}\nrun: {{seed: 4}}\ndistillation: {{methods: {{kd: {{}}}}}}")
    config = load(ClassifierConfig, path)
    assert (config.run.seed, config.run.keep, config.distillation.task) == (4, 5, 0.5)
    assert config.distillation.methods == {"kd": {}}


@pytest.mark.parametrize(
    ("kind", "name", "command"),
    [
        (ClassifierConfig, "cifar10/ddpm-cpu.yaml", "train-denoiser"),
        (ClassifierConfig, "cifar10/ddpm_comparison.yaml", "compare"),
        (DenoiserConfig, "digits/ddpm_smoke.yaml", None),
        (DenoiserConfig, "fashion_mnist/comparison.yaml", "compare"),
        (ComparisonConfig, "digits/ddpm_smoke.yaml", "train-denoiser"),
        (ComparisonConfig, "digits/smoke.yaml", "train"),
        (ClassifierConfig, "sampling: {steps: 3}", "train-denoiser"),
        (ClassifierConfig, "grids: []", "compare"),
        (DenoiserConfig, "targets: {}", "train"),
        (DenoiserConfig, "run: {seed: 1}", None),
    ],
)
def test_a_file_of_another_trainer_names_the_command(kind, name, command, tmp_path):
    name = write(tmp_path, "a.yaml", name) if ": " in name else name
    if command is None:
        assert load(kind, name)
        return
    with pytest.raises(ConfigError, match=rf"is for `redistill {command}`"):
        load(kind, name)


def test_the_configuration_that_a_run_keeps_is_one(tmp_path):
    config = load(ClassifierConfig, "digits/smoke.yaml", ["run.seed=5"])
    RunFolder(tmp_path).write_config(resolved(config), {"torch": "2"})
    assert load(ClassifierConfig, str(tmp_path / "config.yaml")) == config


def test_long_lists_of_what_there_is_are_cut():
    with pytest.raises(ConfigError, match=r"choose from celeba/.*yaml and \d+ more$") as caught:
        load(ClassifierConfig, "zzzzzz")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("recipe: {epoch: 3}", "unknown key 'recipe.epoch'; did you mean 'epochs'"),
        ("recipes: {}", "unknown key 'recipes'; did you mean 'recipe'"),
        ("teacher: {recipe: {optimizer: {lr: 1}}}", "unknown key 'teacher.recipe.optimizer.lr'"),
        ("recipe: {epochs: many}", "recipe.epochs: expected int, got 'many'"),
        ("recipe: {epochs: true}", "recipe.epochs: expected int, got True"),
        ("recipe: {optimizer: {name: adm}}", "'adm' is not one of sgd, adamw"),
        ("data: {mean: 0.5}", "data.mean: expected a list"),
        ("data: 3", "data: expected a mapping"),
        ("- a", "holds a list"),
        ("a: [", "not valid YAML"),
        ("base: digits/smok.yaml", "did you mean 'digits/smoke.yaml'"),
        ("data: {validation: 0}", "must lie between 0 and 1"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        load(ClassifierConfig, write(tmp_path, "a.yaml", text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("run.seed", "section.key=value"),
        ("run.seed.deep=1", "has no keys below it"),
        ("runn.seed=1", "did you mean 'run'"),
    ],
)
def test_assignments_that_cannot_be_read(assignment, words):
    with pytest.raises(ConfigError, match=words):
        load(
            ClassifierConfig,
            "digits/smoke.yaml",
            [assignment, "run.seed=1"][:1] if "deep" not in assignment else ["run.seed=1", assignment],
        )


@pytest.mark.parametrize("name", packaged("classifier"))
def test_every_packaged_experiment_is_read_and_described(name):
    config = load(ClassifierConfig, name)
    Distillation(config.distillation.methods)
    assert len(packaged()[name]) > 20
    assert read(ClassifierConfig, yaml.safe_load(yaml.safe_dump(resolved(config)))) == config


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_switched_on(method):
    config = load(ClassifierConfig, "digits/smoke.yaml", [f"distillation.methods={method}"])
    assert [part.label for part in Distillation(config.distillation.methods).parts] == [method]


def test_differences_are_named():
    first, second = (load(ClassifierConfig, "digits/smoke.yaml", [f"run.seed={seed}"]) for seed in (1, 2))
    assert differences(resolved(first), resolved(second)) == ["run.seed (1, then 2)"]

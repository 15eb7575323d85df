"""What is public: names, what they cost to import, and that no name hides another."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import redistill

HEAVY = ("matplotlib", "torchvision", "sklearn", "torch_fidelity", "accelerate", "timm", "diffusers", "pandas", "scipy")
PROJECT = Path(redistill.__file__).parent.parent


def run(script):
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_optional_and_heavy_packages_are_imported_where_they_are_used():
    ask_for_all = "import sys, redistill\nfor name in redistill.__all__: getattr(redistill, name)\n"
    assert run(f"{ask_for_all}print(*[name for name in {HEAVY} if name in sys.modules])") == []


def test_importing_the_package_alone_imports_nothing_else():
    own = "print(*[n for n in sys.modules if n == 'torch' or n.startswith('redistill.')])"
    assert run(f"import sys, redistill\n{own}") == []


@pytest.mark.parametrize("name", redistill.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name):
    found = getattr(redistill, name)
    assert name in dir(redistill)
    if callable(found):
        assert found.__doc__
        assert found.__doc__.split("\n")[0].endswith(".")


@pytest.mark.parametrize("name", sorted({*redistill.__all__} - {"__version__"}))
def test_every_public_thing_shows_an_example_of_itself(name):
    found = getattr(redistill, name)
    own = {"": found}
    if isinstance(found, type) and not issubclass(found, Exception):
        own |= {key: getattr(value, "__func__", value) for key, value in vars(found).items() if key[0] != "_"}
    shown = {key: value for key, value in own.items() if inspect.isroutine(value) or isinstance(value, type)}
    assert [key for key, value in shown.items() if ">>> " not in (value.__doc__ or "")] == []


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'transfrom'"):
        redistill.transfrom  # noqa: B018


def test_no_function_lies_over_a_package():
    for module in pkgutil.iter_modules(redistill.__path__):
        if module.ispkg:
            importlib.import_module(f"redistill.{module.name}")
            assert isinstance(getattr(redistill, module.name), ModuleType), module.name


def test_the_function_and_the_command_of_one_name_live_together():
    script = "import redistill, redistill.transform as t; print(callable(t), t is redistill.transform)"
    assert run(script) == ["True", "True"]


def test_a_wheel_holds_every_file_that_the_package_reads():
    (patterns,) = re.findall(r"^redistill = \[(.*?)\]", (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    package = PROJECT / "redistill"
    packed = {path for pattern in re.findall(r'"(.*?)"', patterns) for path in package.glob(pattern)}
    other = {".py", ".pyc", ".md"}
    assert {path for path in package.rglob("*") if path.is_file() and path.suffix not in other} == packed


def test_the_version_is_written_in_one_place():
    written = [
        path
        for path in PROJECT.glob("redistill/**/*.py")
        if re.search(r"^__version__ = ", path.read_text(), re.MULTILINE)
    ]
    assert written == [PROJECT / "redistill" / "__init__.py"]
    assert ast.literal_eval(f"{redistill.__version__!r}").count(".") >= 2

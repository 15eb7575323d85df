"""What README and documentation say runs: Python blocks are executed, commands are read by their own parsers."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from redistill.__main__ import COMMANDS
from redistill.config.files import find_file

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "redistill/*/README.md", "examples/*.md")
    for page in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = {"analyze": "profile", "classifier": "train", "denoiser": "train-denoiser", "comparison": "compare"}


def blocks(page, language):
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def ident(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=ident)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), scope)
    assert len(scope) > 1


class ReadError(BaseException):
    """A command line was read by its parser, and nothing more is wanted; no boundary of errors catches it."""


def command_lines(page):
    for code in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            for part in line.partition("  #")[0].split(" && "):
                words = shlex.split(part, comments=True)
                if "redistill" in " ".join(words[:4]):
                    yield words


def command_of(words):
    """The command's name and arguments, whichever way it is called."""
    if words[0] == "redistill":
        return words[1], words[2:]
    if words[0] in ("python", "accelerate") and any(w.startswith("redistill") for w in words):
        at = next(i for i, word in enumerate(words) if word.startswith("redistill"))
        if words[at] == "redistill":
            return words[at + 1], words[at + 2 :]
        name = words[at].removeprefix("redistill.")
        name = name.rpartition(".")[2]
        return NAMES.get(name, name), words[at + 1 :]
    return None


@pytest.mark.parametrize("page", [p for p in PAGES if list(command_lines(p))], ids=ident)
def test_commands_are_read_by_their_own_parsers(page, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def read(parser, arguments=None, namespace=None):
        raise ReadError(parse(parser, arguments, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read)
    for words in command_lines(page):
        if (found := command_of(words)) is None:
            continue
        name, arguments = found
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(ReadError) as given:
            import_module(COMMANDS[name][0]).main(arguments)
        config = getattr(given.value.args[0], "config", None)
        assert config is None or find_file(config).is_file(), words


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists() or (ROOT / target).exists(), f"{ident(page)}: {target}"


def test_generated_tables_are_up_to_date():
    found = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site's generator comes with redistill[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path]
    found = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "planning" / "index.html").is_file()

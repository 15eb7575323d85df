"""Write the generated tables of the documentation anew: ``python docs/generate.py``; with ``--check`` only compare."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import redistill
from redistill.__main__ import COMMANDS
from redistill.config.files import packaged
from redistill.evidence.__main__ import TABLES
from redistill.internal.tables import Rows, render_markdown
from redistill.memory.conventions import CONVENTIONS

PAGES = Path(__file__).parent
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def methods() -> Rows:
    """Every distillation method."""
    rows = [("method", "what it does", "paper", "weight", "options")]
    for entry in redistill.methods().values():
        options = ", ".join(f"`{option.name}={option.default!r}`" for option in entry.options)
        rows.append((f"`{entry.name}`", entry.about, entry.paper or "our own", f"{entry.weight:g}", options))
    return rows


def experiments() -> Rows:
    """Every packaged experiment."""
    return [("configuration", "what it is"), *((f"`{name}`", about) for name, about in packaged().items())]


def commands() -> Rows:
    """Every command."""
    return [("command", "what it does"), *((f"`redistill {name}`", about) for name, (_, about) in COMMANDS.items())]


def evidence() -> Rows:
    """Every table of evidence."""
    return [("`redistill evidence`", "what it recomputes"), *((f"`{name}`", about) for name, about in TABLES.items())]


def conventions() -> Rows:
    """Every convention that has a name."""
    return [("convention", "what is counted"), *((f"`{name}`", c.about) for name, c in CONVENTIONS.items())]


GENERATED: dict[str, Callable[[], Rows]] = {
    table.__name__: table for table in (methods, experiments, commands, evidence, conventions)
}


def pages() -> Iterator[tuple[Path, str, str]]:
    """Each page with generated tables: its file, its text as it is, and as it should be."""
    for page in sorted(PAGES.rglob("*.md")):
        text = page.read_text()
        if BLOCK.search(text):
            yield page, text, BLOCK.sub(lambda m: f"{m[1]}\n{render_markdown(GENERATED[m[2]]())}\n\n{m[3]}", text)


def main() -> int:
    """Run the command; 1 where ``--check`` finds a table that is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is out of date")
    check = parser.parse_args().check
    outdated = [(page, wanted) for page, text, wanted in pages() if text != wanted]
    for page, wanted in outdated:
        sys.stdout.write(f"{page.relative_to(PAGES)} {'is out of date' if check else 'written'}\n")
        if not check:
            page.write_text(wanted)
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())

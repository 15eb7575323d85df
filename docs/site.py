"""What the site's generator is told beside ``mkdocs.yml``: the first page is the README, its links made the site's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **given: Any) -> str:
    """Give a page's text; a link to a page stays within the site, any other leads to the repository."""
    text = (ROOT / "README.md").read_text() if page.file.src_uri == "index.md" else markdown

    def lead(link: re.Match[str]) -> str:
        target = link[1].removeprefix("docs/")
        within = (ROOT / "docs" / target.partition("#")[0]).exists()
        return f"]({target})" if within else f"]({config.repo_url}blob/main/{link[1]})"

    return LINK.sub(lead, text)

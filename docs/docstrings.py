"""What the site's API pages make of our docstrings: an ``Example:`` is a section of code."""

from __future__ import annotations

from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Calls the section as the generator does."""

    def on_object(self, *, obj: griffe.Object, **given: Any) -> None:
        """Read one object's docstring."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")

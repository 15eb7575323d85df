"""``python -m redistill.transform``: the same as ``redistill transform``."""

import sys

from redistill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["transform", *sys.argv[1:]]))
else:  # an import by this name would put the module over the function ``redistill.transform``
    from redistill.compiler.pipeline import transform

    sys.modules[__name__] = transform  # type: ignore[assignment]

"""``python -m redistill.benchmark``: the same as ``redistill benchmark``."""

import sys

from redistill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))

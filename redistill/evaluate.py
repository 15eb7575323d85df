"""``python -m redistill.evaluate``: the same as ``redistill evaluate``."""

import sys

from redistill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))

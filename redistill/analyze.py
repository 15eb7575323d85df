"""``python -m redistill.analyze``: the same as ``redistill profile``."""

import sys

from redistill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["profile", *sys.argv[1:]]))

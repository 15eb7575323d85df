"""``python -m redistill.gallery``: the same as ``redistill gallery``."""

import sys

from redistill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["gallery", *sys.argv[1:]]))

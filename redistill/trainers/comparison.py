"""``python -m redistill.trainers.comparison``: the same as ``redistill compare``."""

import sys

from redistill.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))

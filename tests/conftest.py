import os

# The tests run in several processes, one thread each; those they start must sum in the same order.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write the golden graphs anew (tests/golden)")

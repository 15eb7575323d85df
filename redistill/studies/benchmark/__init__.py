"""Efficiency of a student beside its teacher: memory, latency, work and size (``redistill benchmark``)."""

from redistill.studies.benchmark.measuring import Options, benchmark
from redistill.studies.benchmark.pair import Pair, make_pair, read_pair
from redistill.studies.benchmark.results import Benchmark, Network, RedShare
from redistill.studies.benchmark.timing import PairedTiming, Timing, time_pair

__all__ = [
    "Benchmark",
    "Network",
    "Options",
    "Pair",
    "PairedTiming",
    "RedShare",
    "Timing",
    "benchmark",
    "make_pair",
    "read_pair",
    "time_pair",
]

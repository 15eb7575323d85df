"""Threads: several transform at once while another serves; each result is that of a call alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from redistill import transform
from redistill.models import load_model

MODEL = "redistill:mobilenet_v2_strided?num_classes=10&width_mult=0.1"
CONTEXTS: dict[str, Callable[[], object]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
}


@dataclass
class Shared:
    """Calls that were made beside others or within contexts, and those that went wrong."""

    tried: int = 0
    faults: list[str] = field(default_factory=list)


def run_together(threads: int = 8, rounds: int = 2) -> Shared:
    """Transform in so many threads while one more runs a network, then within contexts of torch."""
    image, shared, lock = torch.zeros(1, 3, 32, 32), Shared(), threading.Lock()
    expected = transform(load_model(MODEL, "random"), image, "4x").code
    served = load_model(MODEL, "random")
    with torch.no_grad():
        answer = served(image)
    stop = threading.Event()

    def note(what: str, trial: Callable[[], bool]) -> None:
        try:
            fault = None if trial() else f"{what}: another result"
        except BaseException as error:
            fault = f"{what}: {type(error).__name__}: {str(error)[:100]}"
        with lock:
            shared.tried += 1
            shared.faults += [fault] if fault else []

    def serve() -> None:
        with torch.no_grad():
            while not stop.is_set():
                note("serving", lambda: torch.equal(served(image), answer))

    def work() -> None:
        for _ in range(rounds):
            note("transforming", lambda: transform(load_model(MODEL, "random"), image, "4x").code == expected)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    server = threading.Thread(target=serve)
    for thread in (server, *workers):
        thread.start()
    for worker in workers:
        worker.join()
    stop.set()
    server.join()
    for name, context in CONTEXTS.items():
        network = load_model(MODEL, "random")
        note(name, partial(_within, context, network, image, expected))
    return shared


def _within(context: Callable[[], object], network: torch.nn.Module, image: torch.Tensor, expected: str) -> bool:
    with context():  # type: ignore[attr-defined]
        return bool(transform(network, image, "4x").code == expected)

"""The evidence from the interpreter for microcontrollers: refused where nothing could be proved, sums that add up."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

from redistill import RedistillError
from redistill.cli import run
from redistill.evidence.microcontroller import Case, difference, examine, main, measure, network_at
from redistill.export import ExportError, make_int8, prepare
from redistill.export.formats import FORMATS, Built

pytest.importorskip("executorch")
pytest.importorskip("torchao")

IMAGES = tuple(torch.randn(4, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_a_missing_converter_is_one_line_before_the_work(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "litert_torch" else find_spec(name))
    assert run(main, ["ds_cnn"]) == RedistillError.exit_code
    assert capsys.readouterr().err == "error: --format tflite needs litert_torch; pip install 'redistill[tflm]'\n"


def test_outputs_that_say_nothing_are_no_evidence(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    nn.init.zeros_(network[2].weight)
    nn.init.zeros_(network[2].bias)
    zeros = replace(FORMATS["tflite"], needs=(), build=lambda _: Built(b""), run=lambda *_: [torch.zeros(1, 5)])
    monkeypatch.setitem(FORMATS, "tflite", zeros)
    with pytest.raises(ExportError, match="silent: the network gives one value throughout"):
        measure("silent", make_int8(prepare(network, IMAGES[0]), IMAGES))


def test_weights_that_are_left_out_are_found(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    zeros = replace(FORMATS["tflite"], needs=(), build=lambda _: Built(b""), run=lambda *_: [torch.zeros(1, 5)])
    monkeypatch.setitem(FORMATS, "tflite", zeros)
    with pytest.raises(ExportError, match="does not compute what the network does"):
        measure("zeros", make_int8(prepare(network, IMAGES[0]), IMAGES))


def test_networks_are_taken_at_the_side_and_say_something():
    network, example = network_at("torchvision:mobilenet_v2", 32)
    assert example.shape == (1, 3, 32, 32)
    assert not network.training
    assert network(example).std() > 0.1
    assert network_at("redistill:ds_cnn?width=8", 48)[1].shape == (1, 1, 32, 32)


def test_a_student_of_keyword_spotting_needs_what_is_predicted():
    pytest.importorskip("litert_torch")
    pytest.importorskip("tflite_micro")
    plain, student = examine("redistill:ds_cnn?width=8", "pool", 32, "4x")
    for case in (plain, student):
        assert case.arena.activations == case.prepared.profile.peak_bytes
        assert case.arena.total == case.arena.activations + case.arena.persistent
        assert case.parity < 0.05
    assert student.arena.activations * 4 == plain.arena.activations


def test_outputs_are_compared_to_the_bit():
    case = Case("", None, torch.tensor([1.0, 2.0]), 0.0, None)
    assert difference(case, case) == "equal to the bit"
    assert difference(case, replace(case, outputs=torch.tensor([1.0, 1.5]))) == "2.5e-01"

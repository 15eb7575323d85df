"""Branch and bound against exhaustive enumeration, on random problems and on a real network."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.compiler.analysis import analyze
from redistill.errors import PlanError
from redistill.memory.conventions import DEPLOY
from redistill.models import load_model
from redistill.planning.objectives import keep_most_macs, pool_earliest
from redistill.planning.problem import ConditionalRows, PlanningProblem, plan_from_factors
from redistill.planning.scaling import ScalingModel, candidate_factors
from redistill.planning.search import least_peak, solve

CHOICES = ((1,), (1, 2), (1, 2, 4), (1, 4), (1, 2, 4, 8))
UNIT = 64  # bytes divide by the largest factor squared: every sum below is exact


def shrinking(values, choices):
    """One row for each factor d: the values over d squared."""
    return np.array([[UNIT * v / d**2 for v in values] for d in choices])


@st.composite
def problems(draw) -> PlanningProblem:
    choices = draw(st.lists(st.sampled_from(CHOICES), min_size=2, max_size=5))
    steps = draw(st.integers(1, 5))
    amounts = st.lists(st.integers(0, 6), min_size=steps, max_size=steps)
    constant = np.array([UNIT * v / 4 for v in draw(amounts)])
    usage = tuple(shrinking(draw(amounts), c) for c in choices)
    macs = tuple(shrinking([draw(st.integers(0, 4))], c)[:, 0] for c in choices)
    tied = draw(st.sets(st.sampled_from(pairs(len(choices))), max_size=min(4, len(pairs(len(choices))))))
    legal = {pair: draw(tables(choices, pair)) for pair in sorted(tied)}
    conditional = tuple(draw(taps(choices, number)) for number in range(draw(st.integers(0, 2))))
    lattice = list(product(*(range(len(c)) for c in choices)))
    excluded = frozenset(draw(st.lists(st.sampled_from(lattice), max_size=4)))
    return PlanningProblem(tuple(choices), constant, usage, macs, legal, conditional, excluded)


def pairs(count):
    return [(a, b) for a in range(count) for b in range(count) if a != b]


@st.composite
def tables(draw, choices, pair):
    rows, columns = (len(choices[s]) for s in pair)
    return np.array([[draw(st.sampled_from([True, True, True, False])) for _ in range(columns)] for _ in range(rows)])


@st.composite
def taps(draw, choices, number):
    source, target = draw(st.sampled_from(pairs(len(choices))))
    active = ~draw(tables(choices, (source, target)))
    usage = tuple(shrinking([draw(st.integers(0, 12))], c) for c in choices)
    return ConditionalRows(f"tap{number}", source, target, active, usage)


def peak(problem: PlanningProblem, plan) -> float:
    """The formula of the peak, written out."""
    peaks = [
        problem.constant[t] + sum(problem.usage[s][choice, t] for s, choice in enumerate(plan))
        for t in range(len(problem.constant))
    ]
    for rows in problem.conditional:
        if rows.active[plan[rows.source], plan[rows.target]]:
            peaks.append(sum(rows.usage[s][choice, 0] for s, choice in enumerate(plan)))
    return max(peaks)


def legal_plans(problem: PlanningProblem):
    for plan in product(*(range(len(c)) for c in problem.choices)):
        fits = all(table[plan[a]][plan[b]] for (a, b), table in problem.legal.items())
        if fits and plan not in problem.excluded:
            yield plan


def total(scores, plan) -> float:
    return float(sum(scores[s][choice] for s, choice in enumerate(plan)))


def mildness(problem: PlanningProblem, plan) -> float:
    return -math.prod(choices[choice] for choices, choice in zip(problem.choices, plan, strict=True))


def some_limit(data, problem: PlanningProblem) -> float:
    """A limit that some plan meets exactly, or one just below it."""
    reached = sorted({peak(problem, plan) for plan in product(*(range(len(c)) for c in problem.choices))})
    return data.draw(st.sampled_from(reached)) - data.draw(st.sampled_from([0.0, 0.0, 0.25]))


@settings(max_examples=200)
@given(problems(), st.data())
def test_the_best_plan_is_that_of_exhaustive_enumeration(problem, data):
    limit = some_limit(data, problem)
    feasible = [plan for plan in legal_plans(problem) if peak(problem, plan) <= limit]
    found = solve(problem, limit, keep_most_macs())
    if not feasible:
        assert found is None
        return
    best = max(
        feasible, key=lambda plan: (total(problem.macs, plan), mildness(problem, plan), -peak(problem, plan), plan)
    )
    assert found is not None
    assert found.plan == best  # ties: what pools least, the lower peak, then pooling earlier
    assert found.peak_bytes == peak(problem, best) <= limit
    assert found.certificate.best_score == total(problem.macs, best)
    assert found.certificate.lattice == math.prod(len(c) for c in problem.choices)


@settings(max_examples=100)
@given(problems())
def test_the_least_peak_is_that_of_exhaustive_enumeration(problem):
    expected = min((peak(problem, plan) for plan in legal_plans(problem)), default=None)
    found = least_peak(problem)
    assert (found and found.peak_bytes) == expected
    if found is not None:
        assert found.plan in set(legal_plans(problem))
        alike = [plan for plan in legal_plans(problem) if peak(problem, plan) == expected]
        assert problem.total_macs(found.plan) == max(map(problem.total_macs, alike))
        assert solve(problem, found.peak_bytes - 0.25, keep_most_macs()) is None


def test_what_the_last_stages_need_is_known_from_the_first():
    """Whatever else is pooled, the last stage is enlarged to an output of 100 bytes: ties are no reason to go on."""
    choices, count = (1, 2, 4, 8), 16
    shrunk = tuple(np.array([[1.0 / d**2] for d in choices]) for _ in range(count))
    enlarged = (*(np.zeros((4, 1)) for _ in range(count - 1)), np.full((4, 1), 100.0))
    always = np.ones((4, 4), dtype=bool)
    output = ConditionalRows("output", count - 2, count - 1, always, enlarged)
    macs = tuple(usage[:, 0] for usage in shrunk)
    problem = PlanningProblem((choices,) * count, np.zeros(1), shrunk, macs, {}, (output,))
    found = least_peak(problem)
    assert (found.peak_bytes, found.plan) == (100, (0,) * count)
    assert found.certificate.visited < 100
    assert solve(problem, 99, keep_most_macs()) is None


@settings(max_examples=100)
@given(problems(), st.data())
def test_earliest_pools_the_stem_least_and_the_rest_as_late_as_it_may(problem, data):
    limit = some_limit(data, problem)
    stems = frozenset(data.draw(st.sets(st.integers(0, len(problem.choices) - 1), max_size=2)))

    def falls(plan) -> bool:
        factors = [c[i] for c, i in zip(problem.choices, plan, strict=True)]
        return all(factors[b] <= factors[a] for a, b in problem.legal if a < b and b not in stems)

    def preference(plan):
        stem, rest = (
            sum(math.log2(problem.choices[s][i]) for s, i in enumerate(plan) if (s in stems) is wanted)
            for wanted in (True, False)
        )
        return -stem, rest, -peak(problem, plan), plan

    feasible = [plan for plan in legal_plans(problem) if peak(problem, plan) <= limit and falls(plan)]
    found = solve(problem, limit, pool_earliest(sorted(stems)))
    assert (found and found.plan) == max(feasible, key=preference, default=None)


@settings(max_examples=60)
@given(problems(), st.data())
def test_plans_excluded_one_by_one_come_out_from_the_best_to_the_last(problem, data):
    limit = some_limit(data, problem)
    expected = {plan for plan in legal_plans(problem) if peak(problem, plan) <= limit}
    scores = []
    while (found := solve(problem, limit, keep_most_macs())) is not None:
        assert found.plan in expected - problem.excluded
        scores.append(found.certificate.best_score)
        problem = replace(problem, excluded=problem.excluded | {found.plan})
    assert expected <= problem.excluded
    assert scores == sorted(scores, reverse=True)


def chain(strides=(2, 2, 2), last=(1,)) -> PlanningProblem:
    """Four stages of 64, 32, 16 and 8 bytes, each alive alone, joined by transitions of the given strides."""
    choices = ((1, 2, 4), (1, 2, 4), (1, 2, 4), last)
    usage = tuple(np.zeros((len(c), 4)) for c in choices)
    for stage, size in enumerate((64, 32, 16, 8)):
        usage[stage][:, stage] = [size / d**2 for d in choices[stage]]
    macs = tuple(np.array([100 / d**2 for d in c]) for c in choices)
    legal = {
        (s, s + 1): np.array([[stride * b % a == 0 for b in choices[s + 1]] for a in choices[s]])
        for s, stride in enumerate(strides)
    }
    return PlanningProblem(choices, np.zeros(4), usage, macs, legal)


def test_most_macs_pools_only_where_the_limit_asks():
    # 64 / 2**2 = 16 and 32 / 2**2 = 8 and 16: the first two stages must be halved for 16 bytes
    problem = chain()
    found = solve(problem, 16, keep_most_macs())
    assert problem.factors(found.plan) == (2, 2, 1, 1)
    assert found.peak_bytes == 16
    assert problem.total_macs(found.plan) == 25 + 25 + 100 + 100


def test_earliest_keeps_what_the_stem_pooled_until_strides_must_give_it_back():
    problem = chain()
    found = solve(problem, 16, pool_earliest([0]))
    # the last stage is kept whole, and one stride of 2 can give back no more than 2
    assert problem.factors(found.plan) == (2, 2, 2, 1)


def test_legality_makes_a_factor_fall_by_steps():
    # 64 / 4**2 = 4 needs the first stage at 4; by strides of 2 it can fall to 2, then to 1: 32 / 4 = 8, 16 / 1 = 16
    problem = chain()
    assert problem.factors(solve(problem, 16, keep_most_macs()).plan)[0] == 2
    tight = replace(problem, choices=((4,), *problem.choices[1:]), usage=(problem.usage[0][2:], *problem.usage[1:]))
    tight = replace(tight, macs=(problem.macs[0][2:], *problem.macs[1:]))
    tight = replace(tight, legal={**problem.legal, (0, 1): problem.legal[0, 1][2:]})
    assert tight.factors(solve(tight, 16, keep_most_macs()).plan) == (4, 2, 1, 1)


def test_nothing_fits_below_what_is_fixed():
    problem = chain()
    # the last stage keeps its 8 bytes: 64 / 4**2 = 4, 32 / 2**2 = 8, 16 / 2**2 = 4
    assert solve(problem, 7.9, keep_most_macs()) is None
    assert least_peak(problem).peak_bytes == 8
    assert problem.factors(solve(problem, 8, keep_most_macs()).plan) == (4, 2, 2, 1)


def test_a_tap_counts_only_where_its_factors_are_chosen():
    # between the first two stages, wherever their factors differ, a tap of 60 bytes
    problem = chain(strides=(4, 4, 4))
    differs = np.array([[a != b for b in problem.choices[1]] for a in problem.choices[0]])
    rows = (np.full((3, 1), 60.0), *(np.zeros((len(c), 1)) for c in problem.choices[1:]))
    tapped = replace(problem, conditional=(ConditionalRows("tap", 0, 1, differs, rows),))
    assert problem.factors(solve(problem, 32, keep_most_macs()).plan) == (2, 1, 1, 1)
    assert tapped.factors(solve(tapped, 32, keep_most_macs()).plan) == (2, 2, 1, 1)
    assert tapped.peak((1, 0, 0, 0)) == 60
    assert tapped.peak((1, 1, 0, 0)) == 16


def test_ties_go_to_the_lower_peak_then_to_the_earlier_stage():
    choices = ((1, 2), (1, 2))
    equal = (np.array([100.0, 50.0]),) * 2
    usage = (np.array([[8.0], [2.0]]), np.array([[4.0], [1.0]]))
    problem = PlanningProblem(choices, np.zeros(1), usage, equal, {})
    # 8 + 4 does not fit; (2, 1) holds 2 + 4 and (1, 2) holds 8 + 1, both compute 150
    assert problem.factors(solve(problem, 11, keep_most_macs()).plan) == (2, 1)
    alike = replace(problem, usage=(usage[0], usage[0]))
    assert alike.factors(solve(alike, 11, keep_most_macs()).plan) == (2, 1)


def test_the_certificate_speaks_of_the_whole_lattice():
    certificate = solve(chain(), 16, keep_most_macs()).certificate
    assert certificate.lattice == 27
    assert 1 <= certificate.visited <= 1 + 3 + 9 + 27 + 27
    assert str(certificate).startswith("optimal among 27 plans (proved by visiting ")
    assert "3 better ones did not hold" in str(replace(certificate, excluded=3))


NAMES = ("conv1", "layer1", "layer2", "layer3")


def test_explicit_factors_become_a_plan():
    assert plan_from_factors(chain(), (4, 2, 2, 1), NAMES) == (2, 1, 1, 0)


def test_a_factor_that_a_stage_does_not_allow_names_the_stage():
    with pytest.raises(PlanError, match=r"stage layer2 cannot take factor 3; it allows 1, 2, 4"):
        plan_from_factors(chain(), (4, 2, 3, 1), NAMES)


def test_a_step_that_no_stride_can_make_names_both_stages():
    with pytest.raises(PlanError, match=r"no stride leads from conv1 at factor 4 to layer1 at factor 1"):
        plan_from_factors(chain(), (4, 1, 1, 1), NAMES)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 96), ("mobilenet_v2", 225)])
@pytest.mark.parametrize("tapped", [False, True])
def test_on_networks_too_every_plan_is_found_at_its_own_peak(name, size, tapped):
    x = torch.empty(1, 3, size, size)
    analysis = analyze(load_model(f"torchvision:{name}", "random"), (x,), check=False)
    scaling = ScalingModel(analysis.stages, DEPLOY, candidate_factors(analysis.stages))
    problem = scaling.problem(analysis.crossings if tapped else ())
    plans = list(legal_plans(problem))
    peaks = [problem.peak(plan) for plan in plans]
    assert peaks[plans.index((0,) * len(problem.choices))] == analysis.profile.peak_bytes  # the teacher's own
    if not tapped:
        assert all(p == int(p) for p in peaks)  # bytes are whole, even where a side does not divide
    for limit in sorted(set(peaks))[:: max(1, len(set(peaks)) // 8)]:
        best = max(problem.total_macs(plan) for plan, reached in zip(plans, peaks, strict=True) if reached <= limit)
        found = solve(problem, limit, keep_most_macs())
        assert problem.total_macs(found.plan) == best
        assert found.peak_bytes <= limit

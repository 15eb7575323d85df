"""Budgets: what is read as what, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill import RedistillError
from redistill.budget import Budget, parse_budget
from redistill.errors import BudgetError

PEAK = 1_000_000


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1x", 1_000_000),
        ("4x", 250_000),
        ("4X", 250_000),
        ("2.5x", 400_000),
        (" 2.5 x ", 400_000),
        ("3x", 333_333),  # 333 333.3, never rounded up
        ("25%", 250_000),
        ("12.5%", 125_000),
        ("100%", 1_000_000),
    ],
)
def test_a_reduction_or_a_share_is_relative_to_the_teachers_peak(text, limit):
    assert parse_budget(text).limit(PEAK) == limit


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("1000", 1000),
        ("524288", 524_288),
        ("1e6", 1_000_000),
        ("7B", 7),
        ("1e6B", 1_000_000),
        ("512KiB", 512 * 1024),
        ("512KB", 512 * 1000),
        ("512kb", 512 * 1000),
        ("2MiB", 2 * 1024 * 1024),
        ("2MB", 2 * 1000 * 1000),
        ("0.5MB", 500_000),
        (".5MB", 500_000),
        ("0.5MiB", 524_288),
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("1.5 MiB", 1_572_864),
        (4, 4),  # an int is bytes, whatever its size
        (524_288, 524_288),
    ],
)
def test_a_size_is_absolute(text, limit):
    budget = parse_budget(text)
    assert budget.limit(PEAK) == limit
    assert budget.limit(7 * PEAK) == limit


@pytest.mark.parametrize(
    "nonsense",
    [
        *(
            "0x",
            "-3MB",
            "4",
            "999",
            "abc",
            "",
            " ",
            "nan",
            float("nan"),
            float("inf"),
            "inf",
            "0%",
            "120%",
            "0.5x",
            True,
        ),
        *(False, None, 0, -5, 2.5, "0B", "0.5B", "-4x", "4xx", "x", "MB", "5iB", "5TB", "1e400x", "1,5MB", "0", "4 4x"),
    ],
)
def test_nonsense_is_refused_with_what_is_accepted(nonsense):
    with pytest.raises(BudgetError) as caught:
        parse_budget(nonsense)
    message = str(caught.value)
    assert f"'{str(nonsense).strip()}" in message
    assert "4x, 2.5x" in message
    assert "25%" in message
    assert "512KiB, 0.5MB, 2MiB" in message
    assert "bytes (524288B)" in message
    assert "\n" not in message


def test_a_number_without_unit_is_answered_with_the_two_readings():
    with pytest.raises(RedistillError, match="4x or 4B"):
        parse_budget("4")


def test_a_budget_is_its_own_parse():
    budget = Budget("half", share=0.5)
    assert parse_budget(budget) is budget
    assert budget.limit(11) == 5


def test_the_text_is_kept_as_the_user_wrote_it():
    assert parse_budget(" 512KiB ").text == "512KiB"


@given(st.integers(1, 10**9), st.sampled_from([("KB", 3), ("MB", 6), ("GB", 9)]))
def test_decimal_fractions_are_read_to_the_byte(size, unit):
    name, digits = unit
    whole, part = divmod(size, 10**digits)
    assert parse_budget(f"{whole}.{part:0{digits}d}{name}").bytes == size


@given(st.integers(1, 2**33), st.integers(1, 64))
def test_a_reduction_never_allows_more_than_the_exact_quotient(peak, reduction):
    assert parse_budget(f"{reduction}x").limit(peak) == peak // reduction

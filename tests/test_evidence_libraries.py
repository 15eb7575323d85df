"""One of the libraries' cases all the way, without a library; the others are for ``redistill evidence libraries``."""

from redistill.evidence.libraries import CASES, follow, main


def test_a_teacher_goes_all_the_way_to_a_compared_file():
    case = next(c for c in CASES if not c.packages)
    result, ratio, kept, _, error, _ = follow(case)
    assert (result, float(ratio.rstrip("x")) >= 2, float(error) < 1e-4) == ("all done", True, True)
    assert kept.endswith("%")


def test_a_name_that_no_case_has_gives_an_empty_table(capsys):
    assert main(["no such teacher"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2

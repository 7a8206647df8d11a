"""A ranking in rows and sentences, and as JSON."""

import json

import pytest

from pgnas_cli.ranking import (
    certainty_lines,
    coverage_line,
    interval,
    paired_p,
    rank,
    ranking_rows,
)
from pgnas_cli.run import Run

from ..conftest import run as command


def test_the_winners_lead_is_told_with_what_to_expect_of_it(
    fitted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert command("rank", "--run", str(fitted.folder), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (single,), (full,) = rank(fitted, top=1), rank(fitted, exhaustive=True)
    mean = float(full.errors.double().mean()) / full.images
    assert found["top"][0]["error"] <= found["expected_error"] <= 1.1 * mean
    told = " ".join(line.strip() for line in certainty_lines(single))
    assert f"from 60; corrected for selection: {100 * single.expected_error:.1f} %" in told


def test_rows_and_coverage_are_those_of_the_race(fitted: Run) -> None:
    """Each row with its interval, and with the test against the first."""
    (board,) = rank(fitted, top=5)
    rows, wrong = ranking_rows(board, 3), [board.race.row(i) for i in board.order.tolist()]
    assert [row[:2] for row in rows] == [[str(n + 1), str(int(board.order[n]))] for n in range(3)]
    for row, missed in zip(rows, wrong, strict=False):
        low, high = interval(int(missed.sum()), 287)
        assert row[2:4] == [f"{100 * int(missed.sum()) / 287:.1f} %",
                            f"{100 * low:.1f}-{100 * high:.1f}"]  # fmt: skip
    assert [row[4] for row in rows] == ["", *(f"{paired_p(wrong[0], w):.3f}" for w in wrong[1:3])]
    share = 100 * board.pairs / (60 * 287)
    assert coverage_line([board], 0, "0:03") == (
        f"exact; evaluated {share:.1f} % of all (candidate, image) pairs in 0:03"
    )
    assert coverage_line([board], 2, "0:03") == (
        "stopped early: 0 candidates might still be better; 2 budgets have not been ranked"
    )

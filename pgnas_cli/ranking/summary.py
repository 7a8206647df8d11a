"""A ranking in rows and sentences, and as JSON."""

from typing import TYPE_CHECKING, Any

from ..units import clock, large, percent
from .statistics import interval

if TYPE_CHECKING:
    from .leaderboard import Board, Ranked

RANKING_HEADINGS = ("rank", "id", "error", "95 %", "p", "parameters", "multiply-adds")


def ranking_rows(board: "Board", top: int) -> list[list[str]]:
    """The cells of the first `top` candidates under `RANKING_HEADINGS`."""
    ranking, sure = board.ranking, board.confidence
    rows = []
    for place, index in enumerate(ranking.order[:top].tolist()):
        errors = int(ranking.errors[index])
        low, high = interval(errors, ranking.images)
        tested = 0 < place < len(sure.p_values)
        rows.append([
            str(place + 1), str(board.first + index), percent(errors / ranking.images),
            f"{100 * low:.1f}-{100 * high:.1f}",
            f"{sure.p_values[place]:.3f}" if tested else "",
            large(int(ranking.sizes.params[index])), large(int(ranking.sizes.macs[index])),
        ])  # fmt: skip
    return rows


def board_lines(board: "Board") -> list[str]:
    """How sure the order is."""
    ranking, sure = board.ranking, board.confidence
    lines = [
        f"the first has {percent(board.best_error)}, chosen for it among {len(ranking.errors)}:"
        f" expect {percent(board.expected_error)} on other images",
        "95 %: for a candidate picked before the ranking; these were picked by it",
    ]
    if len(sure.p_values) < 2:
        return lines
    return [
        *lines,
        "p: exact McNemar test against the first, on the same images",
        f"among these {len(sure.p_values)}, on as many other images, the first stays first with"
        f" {percent(sure.first_again)}",
        f"  at most, and all keep their order with {percent(sure.order_again)}",
    ]


def ranked_lines(ranked: "Ranked") -> list[str]:
    """What the order rests on."""
    rankings = [board.ranking for board in ranked.boards]
    undecided = sum(len(ranking.running) for ranking in rankings)
    if undecided or ranked.waiting:
        more = f", {ranked.waiting} budgets have not begun" if ranked.waiting else ""
        return [f"stopped early: {undecided} candidates might still be better{more}"]
    pairs = sum(ranking.pairs for ranking in rankings)
    every = sum(len(ranking.errors) * ranking.images for ranking in rankings)
    return [
        f"exact, from {percent(pairs / every)} of all pairs of candidate and image; took"
        f" {clock(ranked.seconds)}"
    ]


def ranking_json(ranked: "Ranked", top: int) -> dict[str, Any]:
    """The first `top` candidates, how sure their order is, and what the ranking took.

    Where there are several budgets, one such object for each, under "boards".
    """
    boards = [_board_json(board, top) for board in ranked.boards]
    found = {"seconds": ranked.seconds, "waiting": ranked.waiting}
    return (
        {**boards[0], **found} if ranked.boards[0].budget is None else {"boards": boards, **found}
    )


def _board_json(board: "Board", top: int) -> dict[str, Any]:
    ranking, sure = board.ranking, board.confidence
    count, images = len(ranking.errors), ranking.images
    rows = []
    for place, index in enumerate(ranking.order[:top].tolist()):
        errors = int(ranking.errors[index])
        row: dict[str, Any] = {
            "id": board.first + index, "errors": errors, "images": images,
            "error": errors / images, "interval": interval(errors, images),
            "params": int(ranking.sizes.params[index]), "macs": int(ranking.sizes.macs[index]),
        }  # fmt: skip
        if place < len(sure.p_values):
            row["p_against_first"] = sure.p_values[place]
        rows.append(row)
    found: dict[str, Any] = {} if board.budget is None else {"budget": vars(board.budget)}
    found |= {
        "top": rows, "candidates": count,
        "mean_params": float(ranking.sizes.params.double().mean()),
        "pairs_evaluated": ranking.pairs, "pairs_total": count * images,
        "undecided": len(ranking.running), "expected_error": board.expected_error,
        "first_again": sure.first_again, "order_again": sure.order_again,
    }  # fmt: skip
    if ranking.exhaustive:
        found["mean_error"] = float(ranking.errors.double().mean()) / images
    return found

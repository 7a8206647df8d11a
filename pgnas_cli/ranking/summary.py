"""A ranking in rows and sentences, and as JSON."""

from collections.abc import Sequence
from typing import Any

from ..units import large, percent
from .leaderboard import Leaderboard
from .statistics import error_cells, interval

_HEADINGS = ("rank", "id", "error", "95 %", "p", "parameters", "MACs")


def ranking_title(board: Leaderboard) -> str:
    candidates = len(board.errors)
    distinct = "" if board.networks == candidates else f" ({board.networks} distinct)"
    return (
        f"best{' so far' if board.undecided else ''} of {candidates} candidates{distinct}"
        f"{board.within} on {board.images} held-out images"
    )


def ranking_headings(board: Leaderboard) -> tuple[str, ...]:
    """Of the columns of `ranking_rows`; the time that a time table predicts, where there is one."""
    return (*_HEADINGS, *(["time, predicted"] if "time" in board.candidates.costs else []))


def ranking_entries(board: Leaderboard, top: int) -> list[dict[str, Any]]:
    """The first `top` candidates: what each is and what it did.

    "p_against_first" is there for rows whose order was tested.
    """
    sizes, tested = board.candidates.sizes, board.confidence.p_values
    rows = []
    for place, index in enumerate(board.order[:top].tolist()):
        errors = int(board.errors[index])
        row: dict[str, Any] = {
            "id": index, "errors": errors, "images": board.images,
            "error": errors / board.images, "interval": interval(errors, board.images),
            "params": int(sizes.params[index]), "macs": int(sizes.macs[index]),
        }  # fmt: skip
        if "time" in board.candidates.costs:
            row["predicted_ms"] = int(sizes.time[index]) / 1e6
        if place < len(tested):
            row["p_against_first"] = tested[place]
        rows.append(row)
    return rows


def ranking_rows(board: Leaderboard, top: int) -> list[list[str]]:
    """The cells of the first `top` candidates under `ranking_headings`."""
    rows = []
    for place, entry in enumerate(ranking_entries(board, top)):
        p = entry.get("p_against_first") if place else None
        rows.append([
            str(place + 1), str(entry["id"]), *error_cells(entry["errors"], entry["images"]),
            "" if p is None else f"{p:.3f}",
            large(entry["params"]), large(entry["macs"]),
            *([f"{entry['predicted_ms']:.3g} ms"] if "predicted_ms" in entry else []),
        ])  # fmt: skip
    return rows


def certainty_lines(board: Leaderboard) -> list[str]:
    """How certain the order is."""
    sure = board.confidence
    lines = [
        f"winner: {percent(board.best_error)} held-out error, selected from {board.networks};",
        f"  corrected for selection: {percent(board.expected_error)}",
        "note: the 95 % intervals ignore that candidates were selected for low error",
    ]
    rows = len(sure.p_values)
    if board.networks_shown < rows:
        lines.append(f"distinct among these {rows}: {board.networks_shown}; copies share a result")
    if board.networks_shown < 2:
        return lines
    return [
        *lines,
        "p: exact McNemar test against the first, on the same images",
        f"of these {rows}, on as many other images, the first stays first",
        f"  with probability {percent(sure.first_again)} at most, and all keep their order with"
        f" {percent(sure.order_again)}",
    ]


def coverage_line(boards: Sequence[Leaderboard], waiting: int, duration: str) -> str:
    """What the order rests on; `waiting` budgets have not been begun."""
    undecided = sum(board.undecided for board in boards)
    if undecided or waiting:
        more = f"; {waiting} budgets have not been ranked" if waiting else ""
        return f"stopped early: {undecided} candidates might still be better{more}"
    pairs = sum(board.pairs for board in boards)
    every = sum(len(board.errors) * board.images for board in boards)
    return (
        f"exact; evaluated {percent(pairs / every)} of all (candidate, image) pairs in {duration}"
    )


def ranking_json(
    boards: Sequence[Leaderboard], top: int, *, waiting: int, seconds: float
) -> dict[str, Any]:
    """The first `top` candidates, how certain their order is, and what the ranking took.

    Where candidates were drawn for several budgets, one such object for each, under "boards".
    """
    found = [_board_json(board, top) for board in boards]
    rest = {"seconds": seconds, "waiting": waiting}
    return {**found[0], **rest} if len(boards) + waiting == 1 else {"boards": found, **rest}


def _board_json(board: Leaderboard, top: int) -> dict[str, Any]:
    count, images, budget = len(board.errors), board.images, board.candidates.budget
    found: dict[str, Any] = {} if budget is None else {"budget": vars(budget)}
    found |= {
        "top": ranking_entries(board, top), "candidates": count, "networks": board.networks,
        "mean_params": float(board.candidates.sizes.params.double().mean()),
        "pairs_evaluated": board.pairs, "pairs_total": count * images,
        "undecided": board.undecided, "expected_error": board.expected_error,
        "first_again": board.confidence.first_again, "order_again": board.confidence.order_again,
    }  # fmt: skip
    if board.exhaustive:
        found["mean_error"] = float(board.errors.double().mean()) / images
    return found

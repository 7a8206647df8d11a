"""The sentences and tables of a report, of one run or of several side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation import Evaluation, paired_test
from ..latency import Latency
from ..ranking import (
    SHOWN,
    Leaderboard,
    certainty_lines,
    error_cells,
    ranking_headings,
    ranking_rows,
    ranking_title,
)
from ..sampling import other_size
from ..storage import to_json
from ..units import clock, large, p_text, pace, percent
from .summary import GatedLayer, RunSummary, front

ROLES = {
    "whole": "the original network, trained without gates",
    "open": "the gated network with all gates open, as no candidate was trained",
    "fixed": "of a network whose gates dropped at one fixed rate",
    "twin": "random baseline of the same size as the best, drop probabilities randomly permuted",
    "best": "best of the candidates",
    "former": "best of the candidates when it was exported; the ranking has another by now",
    "tuned": "fine-tuned",
    "other": "of another run",
    "candidate": "",
}


def role_words(role: str, params: int = 0, best: int = 0) -> str:
    """Return what a role means; of "twin" also how it differs from the parameters of the best."""
    size = other_size(params, best) if role == "twin" and best else ""
    return ROLES[role].replace("of the same size as", f"with {size} than") if size else ROLES[role]


ORDER = ("best", "former", "tuned", "whole", "open", "candidate", "other", "fixed", "twin")

Cell = str | tuple[str, str]  # with a small second line


@dataclass(frozen=True)
class Table:
    """A table of a page; the first cell of a row is its heading."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def headline(run: RunSummary) -> str:
    """Return the answer in one line."""
    best, winner = run.evaluated_as("best"), run.winner
    if best is not None:
        text = f"{percent(best.params / best.whole_params)} of the parameters, {_error(best)}"
        whole = run.evaluated_as("whole", like=best)
        text += f" test error (original network {_error(whole)})" if whole else " test error"
    elif winner is not None:
        text = (
            f"{percent(winner.params / run.params)} of the parameters,"
            f" {percent(winner.error)} held-out error"
        )
    elif run.epochs:
        last = run.epochs[-1]
        text = (
            f"trained: candidates of {percent(last.expected_share)} of the parameters,"
            f" {percent(last.hard_error)} held-out error on average"
        )
    else:
        text = "a fitted posterior"
    if run.boards and not run.finished:
        text += ", so far"
    return text if not run.baseline else f"{text}; a baseline ({run.baseline}), not the posterior"


def subject(run: RunSummary) -> str:
    """Return the sentence that names network and images."""
    found = run.posterior.supernet
    shape = "x".join(map(str, found.preprocessing.input_shape))
    return f"{found.backbone} on {found.data}, {len(found.classes)} classes, images of {shape}."


def _in_order(run: RunSummary) -> list[Evaluation]:
    return sorted(run.evaluated_alike(), key=lambda row: ORDER.index(run.role(row)))


def evaluated(run: RunSummary) -> Table | None:
    """Return the networks that were evaluated alike: best, original, random baselines last."""
    rows: list[list[Cell]] = []
    found = _in_order(run)
    top5 = any(row.top5_errors is not None for row in found)
    for row in found:
        role = run.role(row)
        far = row.top5_errors
        best = run.evaluated_as("best", like=row)
        words = [role_words(role, row.params, best.params if best else 0)]
        if row.candidate.isdecimal():
            words.append(f"candidate {row.candidate}")
        if row.finetuned_epochs:
            words = [*words[role == "tuned" :], f"fine-tuned for {row.finetuned_epochs} epochs"]
        rows.append([
            (row.name, ", ".join(word for word in words if word)),
            error_cells(row.errors, row.images),
            *([] if not top5 else [""] if far is None else [error_cells(far, row.images)]),
            percent(row.held_out_errors / row.held_out_images),
            (large(row.params), percent(row.params / row.whole_params)),
            (large(row.macs), percent(row.macs / row.whole_macs)),
        ])  # fmt: skip
    if not found:
        return None
    first = found[0]
    return Table(
        f"On the {first.images} test images of {first.data}{_computed_in(first)}",
        ("network", "test error, 95 %", *(["top-5 error, 95 %"] if top5 else []), "held-out error",
         "parameters", "MACs"),
        rows,
    )  # fmt: skip


def _computed_in(row: Evaluation) -> str:
    return "" if row.precision == "float32" else f", computed in {row.precision}"


def times(run: RunSummary) -> Table | None:
    """Return what a forward of those networks takes, in torch and ONNX Runtime."""
    found = _in_order(run)
    if not found:
        return None
    first, onnx = found[0], any(row.onnx_one for row in found)
    rows: list[list[Cell]] = [
        [row.name, *(_time_cell(time) for time in (row.one, row.many)),
         *(_time_cell(time) for time in (row.onnx_one, row.onnx_many) if onnx)]
        for row in found
    ]  # fmt: skip
    many = f"{first.many.batch} images"
    return Table(
        f"Milliseconds per forward on {first.processor or first.device}; below, relative to the"
        " original network's time (the middle half of the forwards)",
        ("network", "torch, 1 image", f"torch, {many}",
         *(["ONNX Runtime, 1 image", f"ONNX Runtime, {many}"] if onnx else [])),
        rows,
    )  # fmt: skip


def _time_cell(time: Latency | None) -> Cell:
    if time is None:
        return ""
    share = f"{100 * time.ratio:.0f}"
    if time.low is not None and time.high is not None:
        share = f"{100 * time.low:.0f}-{100 * time.high:.0f}"
    return f"{time.slim:.3g}", f"{share} % of {time.whole:.3g}"


def by_class(run: RunSummary) -> Table | None:
    """Return the errors of each class, best and original first; the best's worst class first."""
    found = _in_order(run)
    found = [row for row in found if row.by_class]
    if not found:
        return None
    counts = [{name: errors for name, errors, _ in row.by_class} for row in found]
    images = {name: n for name, _, n in found[0].by_class if n}
    worst = sorted(images, key=lambda name: (-counts[0].get(name, 0) / images[name], name))
    rows: list[list[Cell]] = [
        [name, str(images[name]), *(error_cells(one.get(name, 0), images[name]) for one in counts)]
        for name in worst
    ]
    return Table(
        "Test error of each class and its 95 % interval, the worst first",
        ("class", "images", *(r.name for r in found)),
        rows,
    )  # fmt: skip


def untested(run: RunSummary) -> Table | None:
    """Return what is known of the winner while it has no test error."""
    winner = run.winner
    if winner is None or run.evaluated_as("best") is not None:
        return None
    return Table(
        f"The winner{run.boards[0].within}, on {winner.images} held-out images",
        ("network", "error", "95 %", "corrected for selection", "parameters", "MACs"),
        [[
            f"candidate {winner.id}", *error_cells(winner.errors, winner.images),
            percent(winner.expected_error),
            f"{large(winner.params)} ({percent(winner.params / run.params)})",
            f"{large(winner.macs)} ({percent(winner.macs / run.macs)})",
        ]],
    )  # fmt: skip


def notes(run: RunSummary) -> list[str]:
    """Return what has to be known beside the networks that were evaluated."""
    found = []
    if run.undecided or run.waiting:
        more = f" {run.waiting} budgets have not begun." if run.waiting else ""
        found.append(
            f"The ranking is not finished: {run.undecided} candidates might still be better.{more}"
            " pgnas rank resumes it."
        )
    best = run.evaluated_as("best")
    if best is not None:
        whole = run.evaluated_as("whole", like=best)
        found += [_verdict(best, whole)] if whole else []
        found.append(
            "Timed in turns with the original network, the best takes"
            f" {_share_of_time(best.one)} for one image, {pace(best.one.throughput)} images a"
            f" second, and {_share_of_time(best.many)} for {best.many.batch},"
            f" {pace(best.many.throughput)} images a second."
        )
        if best.onnx_one is not None and best.onnx_many is not None:
            found.append(
                f"In ONNX Runtime it takes {best.onnx_one.slim:.3g} ms for one image,"
                f" {_share_of_time(best.onnx_one)}, and {best.onnx_many.slim:.3g} ms for"
                f" {best.onnx_many.batch}, {_share_of_time(best.onnx_many)}."
            )
        if best.predicted is not None:
            of = best.predicted
            found.append(
                f"Predicted for it were {of.ms:.3g} ms, {of.share:.2f} of the original network's"
                f" time ({of.runtime}, {of.batch} images a forward, {of.device})."
            )
    alike = run.evaluated_alike()
    others = ", ".join(row.name for row in run.evaluated if row not in alike)
    if others:
        found.append(
            "Left out, since evaluated on other images, on another machine, or with another"
            f" precision or batch size: {others}."
        )
    return found


def _share_of_time(time: Latency) -> str:
    return f"{time.ratio:.2f} of the time ({'faster' if time.faster else 'not faster'})"


def _error(row: Evaluation) -> str:
    return percent(row.errors / row.images)


def _verdict(best: Evaluation, whole: Evaluation) -> str:
    """Return whether the test images can tell the best from the original network."""
    mine, theirs = set(best.wrong), set(whole.wrong)
    only_best, only_whole = len(mine - theirs), len(theirs - mine)
    p = paired_test(best, whole)
    told = "these images cannot tell the two apart" if p >= 0.05 else "that is more than chance"
    return (
        f"Of the {best.images} test images the best gets {only_best} wrong that the original"
        f" network gets right, and {only_whole} right that the original network gets wrong: {told}"
        f" (exact McNemar test, {p_text(p)})."
    )


def front_table(run: RunSummary) -> Table:
    """Return the candidates that no other beats in size and errors at once."""
    rows = []
    for board in run.boards:
        sizes, ids = board.candidates.sizes, board.race.finished.nonzero().flatten()
        for index in ids[front(board.errors[ids], sizes.params[ids])].tolist():
            rows.append([
                str(index), percent(int(board.errors[index]) / board.images),
                large(int(sizes.params[index])), large(int(sizes.macs[index])),
                str(board.candidates.budget or "none"),
            ])  # fmt: skip
    return Table(
        "The front: among the candidates of a budget that were evaluated on every image, no other"
        " is both smaller and better; take one with export --candidate ID",
        ("id", "held-out error", "parameters", "MACs", "budget"), rows,
    )  # fmt: skip


def confidence(board: Leaderboard) -> tuple[Table, list[str]]:
    """Return the first places of a ranking, and how sure their order is."""
    lines = "\n".join(certainty_lines(board)).replace("\n  ", " ").splitlines()  # unwrapped
    caption = ranking_title(board).replace("best", "Best", 1)
    return Table(caption, ranking_headings(board), ranking_rows(board, SHOWN)), lines


def pruned_table(run: RunSummary) -> Table | None:
    """Return the channels and operations that the winner lacks, by kind of layer (Table 7)."""
    if any(layer.kept is None for layer in run.layers):
        return None
    kinds: dict[str, list[GatedLayer]] = {}
    for layer in run.layers:
        kinds.setdefault(layer.kind, []).append(layer)
    rows = []
    for kind, layers in {**kinds, "all": run.layers}.items():
        total = sum(len(layer.drop) for layer in layers)
        pruned = total - sum(layer.kept or 0 for layer in layers)
        gone = sum(layer.kept == 0 for layer in layers)
        rows.append([
            kind, f"{gone} of {len(layers)}", percent(gone / len(layers)),
            f"{pruned} of {total}", percent(pruned / total),
        ])  # fmt: skip
    return Table(
        "Operations and input channels whose gates the winner closes",
        ("kind", "operations", "share", "channels", "share"), rows,
    )  # fmt: skip


def layer_table(run: RunSummary) -> Table:
    """Return each layer with gates."""
    rows = []
    for layer in run.layers:
        gates, kept = len(layer.drop), "" if layer.kept is None else str(layer.kept)
        rows.append([layer.name, layer.kind, str(gates), kept, f"{sum(layer.drop) / gates:.3f}"])
    return Table(
        "Layers with gates, in order of execution",
        ("layer", "kind", "gates", "kept by the winner", "mean p"), rows,
    )  # fmt: skip


def versions(run: RunSummary) -> str:
    """Return the versions that the commands ran with."""
    found = (
        f"pgnas {c.pgnas}, torch {c.torch}, timm {c.timm}, Python {c.python}" for c in run.commands
    )
    return "; ".join(dict.fromkeys(found)) + "."


def facts(run: RunSummary) -> Table:
    """Return seed, images, prior and files of a run."""
    split, objective = run.posterior.split, run.posterior.objective
    rows = [
        ["seed", str(run.posterior.seed)],
        ["training images", f"{split.fit_images}, digest {split.fit_digest}"],
        ["held-out images", f"{split.held_out_images}, digest {split.digest}"],
        ["prior", f"l2 {objective.prior.l2:.6g}, N {objective.prior.images:.6g}"],
        ["target", str(objective.target or "none")],
        *([name, f"sha256 {digest}"] for name, digest in run.digests),
    ]
    if run.epochs:
        rows.append(["training time", clock(sum(epoch.seconds for epoch in run.epochs))])
    return Table("Seed, images, prior and files", ("what", "value"), rows)


def recipe(run: RunSummary) -> Table:
    """Return the recipe of the training."""
    rows = [[key, str(value)] for key, value in to_json(run.posterior.recipe).items()]
    return Table("The training recipe", ("field", "value"), rows)


def comparison(runs: Sequence[RunSummary]) -> Table:
    """Return several runs side by side: the options in which they differ, and the winner."""
    options = [_options(run) for run in runs]
    keys = dict.fromkeys(key for one in options for key in one)
    differing = [k for k in keys if len({repr(one.get(k)) for one in options}) > 1]
    columns = [_outcome(run) for run in runs]
    rows = [
        *([key, *(column[key] for column in columns)] for key in ("name", "data")),
        *([key, *(str(one.get(key)) for one in options)] for key in differing if key != "data"),
        *([key, *(column[key] for column in columns)] for key in list(columns[0])[2:]),
    ]
    return Table(
        "Each run, the options in which they differ, and the winner",
        ("", *(f"run {index + 1}" for index in range(len(runs)))), rows,
    )  # fmt: skip


def _options(run: RunSummary) -> dict[str, Any]:
    settings = to_json(run.settings)
    recipe = settings.pop("recipe")
    return {**settings, **recipe}


def _outcome(run: RunSummary) -> dict[str, str]:
    """Return one run's column of the comparison."""
    last, winner, best = run.epochs[-1:], run.winner, run.evaluated_as("best")
    return {
        "name": run.folder.name,
        "data": run.posterior.supernet.data.name,
        "mean candidate, held-out": percent(last[0].hard_error) if last else "",
        "winner, held-out": percent(winner.error) if winner else "",
        "winner, corrected for selection": percent(winner.expected_error) if winner else "",
        "winner, test": _error(best) if best else "",
        "parameters": percent(winner.params / run.params) if winner else "",
        "MACs": percent(winner.macs / run.macs) if winner else "",
        "training time": clock(sum(epoch.seconds for epoch in run.epochs)) if last else "",
    }

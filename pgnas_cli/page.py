"""The report: what the files of one or more runs say, as one page that needs nothing else.

No script, no request, no font of its own; light and dark by the reader's system.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from . import figures, markup
from .boards import board_lines
from .comparison import comparison
from .confidence import interval
from .console import clock, large, percent
from .files import Run
from .findings import Findings, GatedLayer, findings_of, front
from .leaderboard import Board
from .records import Evaluated
from .storage import to_json, write_text

SHOWN = 10  # candidates in the table of the ranking
NAMES = {
    "whole": "the whole network, trained as long",
    "random": "best candidate of a network whose gates drop at one fixed rate",
    "twin": "random twin: as large as the best, drop probabilities dealt out by chance",
    "best": "best of the candidates",
    "smallest": "the smallest that a test cannot tell from the best",
}


def report_stage(runs: Sequence[Run], path: Path) -> list[Findings]:
    """Write the page of a run, or of several side by side; returns what it shows."""
    found = [findings_of(run) for run in runs]
    write_text(path, page_of(found))
    return found


def page_of(runs: Sequence[Findings]) -> str:
    """The page as HTML."""
    if len(runs) == 1:
        title = f"pgnas: {runs[0].folder.name}"
        body = [f"<h1>{markup.text(headline(runs[0]))}</h1>", *_run_sections(runs[0], "r1", "h2")]
    else:
        title = f"pgnas: {len(runs)} runs"
        body = [f"<h1>{len(runs)} runs side by side</h1>", *comparison(runs)]
        for index, run in enumerate(runs):
            body += [
                "<details>",
                f"<summary>Run {index + 1}: {markup.text(run.folder.name)}</summary>",
                f"<h2>{markup.text(headline(run))}</h2>",
                *_run_sections(run, f"r{index + 1}", "h3"),
                "</details>",
            ]
    return markup.document(title, body)


def headline(run: Findings) -> str:
    """The answer in one line."""
    best = run.row("best")
    if best is not None:
        text = (
            f"{percent(best.params / best.whole_params)} of the parameters,"
            f" {percent(best.errors / best.images)} test error"
        )
        whole = run.row("whole")
        if whole is not None:
            text += f" (whole network {percent(whole.errors / whole.images)})"
        return text
    if run.boards:
        ranking = run.boards[0].ranking
        winner = int(ranking.order[0])
        share = int(ranking.sizes.params[winner]) / run.params
        error = int(ranking.errors[winner]) / ranking.images
        return f"{percent(share)} of the parameters, {percent(error)} held-out error"
    if run.epochs:
        last = run.epochs[-1]
        return (
            f"fitted: candidates of {percent(last.expected_share)} of the parameters,"
            f" {percent(last.hard_error)} held-out error on average"
        )
    return "a fitted posterior"


def _run_sections(run: Findings, name: str, heading: str) -> list[str]:
    """All that is to be said of one run."""
    parts = [_answer(run)]

    def section(title: str, *content: str) -> None:
        if any(content):
            parts.append(f"<section>\n<{heading}>{markup.text(title)}</{heading}>")
            parts.extend(part for part in content if part)
            parts.append("</section>")

    if run.boards:
        section(
            "Size and error",
            markup.figure(figures.size_error(run, f"{name}-size")),
            _front_table(run),
        )
        section("How sure that is", *(_sureness(board) for board in run.boards))
    section(
        "What was dropped",
        markup.figure(figures.drop_by_layer(run, f"{name}-drop")),
        _dropped_table(run),
        _layer_table(run),
    )
    if run.epochs:
        curves: list[Callable[[Findings, str], figures.Picture]] = [
            figures.loss_curve, figures.error_curve, figures.drop_over_time, figures.size_curve,
        ]  # fmt: skip
        drawn = [markup.figure(c(run, f"{name}-fit{i}")) for i, c in enumerate(curves)]
        section("The fit", '<div class="two">', *drawn, "</div>")
    races = [
        markup.figure(figures.race_curve(board, f"{name}-race{i}"))
        for i, board in enumerate(run.boards)
    ]
    if races:
        section("The race", '<div class="two">', *races, "</div>", _race_text(run))
    section("To repeat it", *_repeat(run))
    return parts


# --- the answer ------------------------------------------------------------------------------


def _answer(run: Findings) -> str:
    """The networks that were evaluated, or what is known of the winner without that."""
    subject = run.posterior.subject
    images = f"{subject.data.removeprefix('folder:')}, {len(subject.classes)} classes"
    shape = "x".join(map(str, subject.preprocessing.input_shape))
    about = f"<p>{markup.text(f'{subject.backbone} on {images}, images of {shape}.')}</p>"
    if not run.evaluated:
        return f"{about}\n{_untested(run)}"
    order = {"whole": 0, "random": 1, "twin": 2, "best": 3, "smallest": 4}
    rows = sorted(run.evaluated, key=lambda row: order.get(row.name, 5))
    lines: list[list[markup.Cell]] = []
    for row in rows:
        low, high = interval(row.errors, row.images)
        tuned = f", fine-tuned for {row.finetuned_epochs} epochs" if row.finetuned_epochs else ""
        what = NAMES.get(row.name, "")
        if row.candidate.isdecimal():
            what = f"{what}, candidate {row.candidate}".removeprefix(", ")
        lines.append([
            (row.name, what + tuned),
            (percent(row.errors / row.images), f"{100 * low:.1f}-{100 * high:.1f}"),
            percent(row.held_out_errors / row.held_out_images),
            (large(row.params), percent(row.params / row.whole_params)),
            (large(row.macs), percent(row.macs / row.whole_macs)),
            (f"{row.one_ms:.2f}", f"whole {row.one_whole_ms:.2f}"),
            (f"{row.many_ms:.1f}", f"whole {row.many_whole_ms:.1f}"),
        ])  # fmt: skip
    first = rows[0]
    table = markup.table(
        f"On {first.images} test images; times on {first.device}",
        ("network", "test error, 95 %", "held-out", "parameters", "multiply-adds",
         "ms, 1 image", f"ms, {first.batch} images"),
        lines,
    )  # fmt: skip
    notes = [_overtaken(run), _verdict(rows), _faster(rows)]
    return "\n".join([about, table, *(f"<p>{markup.text(note)}</p>" for note in notes if note)])


def _untested(run: Findings) -> str:
    if not run.boards:
        step = "rank" if run.drawn is not None else "sample"
        return f"<p>Nothing has been ranked yet: <code>pgnas {step}</code> is next.</p>"
    ranking = run.boards[0].ranking
    winner = int(ranking.order[0])
    errors = int(ranking.errors[winner])
    low, high = interval(errors, ranking.images)
    params, macs = int(ranking.sizes.params[winner]), int(ranking.sizes.macs[winner])
    row = [
        f"candidate {run.winner}", f"{percent(errors / ranking.images)}",
        f"{100 * low:.1f}-{100 * high:.1f}", percent(run.boards[0].expected_error),
        f"{large(params)} ({percent(params / run.params)})",
        f"{large(macs)} ({percent(macs / run.macs)})",
    ]  # fmt: skip
    table = markup.table(
        f"The winner, on {ranking.images} held-out images",
        ("network", "error", "95 %", "to expect", "parameters", "multiply-adds"), [row],
    )  # fmt: skip
    later = "<p>Its test error: <code>pgnas export</code>, then <code>pgnas evaluate</code>.</p>"
    return f"{table}\n{later}"


def _overtaken(run: Findings) -> str:
    """Whether the ranking has another first by now than the one that was evaluated."""
    best = run.row("best")
    if best is None or run.winner is None or best.candidate in ("", str(run.winner)):
        return ""
    return (
        f"The ranking's first is candidate {run.winner} by now; export and evaluate it to have it"
        " here."
    )


def _verdict(rows: Sequence[Evaluated]) -> str:
    """Whether the best is as good as the whole network, as far as the test images tell."""
    named = {row.name: row for row in rows}
    if not {"whole", "best"} <= set(named):
        return ""
    best, whole = named["best"], named["whole"]
    difference = 100 * (best.errors / best.images - whole.errors / whole.images)
    low, high = interval(best.errors, best.images)
    inside = low <= whole.errors / whole.images <= high
    return (
        f"The best errs on {abs(difference):.1f} points {'more' if difference > 0 else 'less'} of"
        f" the test images than the whole network, {'within' if inside else 'outside'} its 95 %"
        " interval."
    )


def _faster(rows: Sequence[Evaluated]) -> str:
    best = next((row for row in rows if row.name == "best"), None)
    if best is None:
        return ""
    one, many = best.one_ms / best.one_whole_ms, best.many_ms / best.many_whole_ms
    verdict = "faster" if max(one, many) < 0.95 else "not faster" if min(one, many) > 0.95 else ""
    return (
        f"On that machine the best takes {one:.2f} of the whole network's time for one image and"
        f" {many:.2f} for {best.batch}" + (f": {verdict}." if verdict else ".")
    )


# --- the rest --------------------------------------------------------------------------------


def _front_table(run: Findings) -> str:
    """The candidates that no other beats in size and errors at once."""
    rows = []
    for board in run.boards:
        ranking = board.ranking
        ids = ranking.race.finished.nonzero().flatten()
        for index in ids[front(ranking.errors[ids], ranking.sizes.params[ids])].tolist():
            errors = int(ranking.errors[index])
            rows.append([
                str(board.first + index), percent(errors / ranking.images),
                large(int(ranking.sizes.params[index])), large(int(ranking.sizes.macs[index])),
            ])  # fmt: skip
    table = markup.table(
        "The front, by size: among those evaluated on every image, no other is both smaller and"
        " better; take one with export --candidate ID",
        ("id", "held-out error", "parameters", "multiply-adds"), rows,
    )  # fmt: skip
    return markup.folded("The front as a table", table)


def _sureness(board: Board) -> str:
    ranking, sure = board.ranking, board.confidence
    rows = []
    for place, index in enumerate(ranking.order[:SHOWN].tolist()):
        errors = int(ranking.errors[index])
        low, high = interval(errors, ranking.images)
        p = f"{sure.p_values[place]:.3f}" if 0 < place < len(sure.p_values) else ""
        rows.append([
            str(place + 1), str(board.first + index), percent(errors / ranking.images),
            f"{100 * low:.1f}-{100 * high:.1f}", p, large(int(ranking.sizes.params[index])),
            large(int(ranking.sizes.macs[index])),
        ])  # fmt: skip
    within = "" if board.budget is None else f" within {board.budget}"
    table = markup.table(
        f"Best of {len(ranking.errors)} candidates{within} on {ranking.images} held-out images",
        ("rank", "id", "error", "95 %", "p", "parameters", "multiply-adds"), rows,
    )  # fmt: skip
    items = "".join(f"<li>{markup.text(line.strip())}</li>" for line in _joined(board_lines(board)))
    return f"{table}\n<ul>{items}</ul>"


def _joined(lines: Iterable[str]) -> list[str]:
    """Lines of the terminal, those that only go on put behind the one before."""
    found: list[str] = []
    for line in lines:
        if line.startswith("  ") and found:
            found[-1] += line[1:]
        else:
            found.append(line)
    return found


def _dropped_table(run: Findings) -> str:
    """Channels and operations that the winner lacks, by kind of operation (Table 7)."""
    if any(layer.kept is None for layer in run.layers):
        return ""
    kinds: dict[str, list[GatedLayer]] = {}
    for layer in run.layers:
        kinds.setdefault(layer.kind, []).append(layer)
    kinds["all"] = list(run.layers)
    rows = []
    for kind, layers in kinds.items():
        total = sum(len(layer.drop) for layer in layers)
        kept = sum(layer.kept or 0 for layer in layers)
        gone = sum(layer.kept == 0 for layer in layers)
        rows.append([
            kind, f"{gone} of {len(layers)}", percent(gone / len(layers)),
            f"{total - kept} of {total}", percent(1 - kept / total),
        ])  # fmt: skip
    return markup.table(
        "Operations and channels that the winner does without",
        ("kind", "operations", "share", "channels", "share"), rows,
    )  # fmt: skip


def _layer_table(run: Findings) -> str:
    rows = []
    for layer in run.layers:
        drop = torch.tensor(layer.drop)
        kept = "" if layer.kept is None else str(layer.kept)
        rows.append([layer.name, layer.kind, str(len(layer.drop)), kept, f"{drop.mean():.3f}"])
    table = markup.table(
        "Layers with gates, in order of execution",
        ("layer", "kind", "gates", "kept by the winner", "mean p"), rows,
    )  # fmt: skip
    return markup.folded("Layer by layer", table)


def _race_text(run: Findings) -> str:
    if not run.exact:
        return "<p>The ranking was stopped early; <code>pgnas rank</code> goes on with it.</p>"
    own = f" Every candidate had batch-norm statistics of its own, from {run.recalibrate} images."
    more = own if run.recalibrate else ""
    return f"<p>The first places are those of a full evaluation.{more}</p>"


def _repeat(run: Findings) -> list[str]:
    """Command lines, versions, seed, and what the files and data were."""
    parts = []
    if run.commands:
        lines = "\n".join(markup.text(command.line) for command in run.commands)
        parts.append(f'<pre tabindex="0" role="region" aria-label="Command lines">{lines}</pre>')
        versions = dict.fromkeys(
            f"pgnas {c.pgnas}, torch {c.torch}, timm {c.timm}, Python {c.python}"
            for c in run.commands
        )
        parts.append(f"<p>{markup.text('; '.join(versions))}.</p>")
    cutting, objective = run.posterior.cutting, run.posterior.objective
    rows = [
        ["seed", str(run.posterior.seed)],
        ["images fitted", f"{cutting.fit_images}, digest {cutting.fit_digest}"],
        ["images held out", f"{cutting.held_out_images}, digest {cutting.digest}"],
        ["prior", f"l2 {objective.l2:.6g}, N {objective.kl_images:.6g}"],
        ["target", str(objective.target) if objective.target else "none"],
        *([name, f"sha256 {digest}"] for name, digest in run.digests),
    ]
    if run.epochs:
        rows.append(["time of the fit", clock(sum(e.seconds for e in run.epochs))])
    parts.append(markup.table("What it was", ("", ""), rows))
    recipe = [[key, str(value)] for key, value in to_json(run.posterior.recipe).items()]
    parts.append(
        markup.folded(
            "The recipe", markup.table("The recipe of the fit", ("field", "value"), recipe)
        )
    )
    return parts

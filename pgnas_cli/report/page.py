"""The report: what the files of one or more runs say, as one page that needs nothing else.

No script, no request, no font of its own; light and dark by the reader's system.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from ..errors import PgnasError
from ..ranking import RANKING_HEADINGS, SHOWN, Board, board_lines, ranking_rows
from ..run import Run
from ..storage import to_json, write_text
from ..units import clock, large, percent
from . import markup, plots
from .content import Findings, GatedLayer, findings_of, front
from .text import answer, comparison, headline


def report_stage(runs: Sequence[Run], path: Path) -> list[Findings]:
    """Write the page of a run, or of several side by side; returns what it shows."""
    if path.suffix not in (".html", ".htm"):
        raise PgnasError(f"'{path}' has no known ending; possible: .html")
    if path.exists() and not _ours(path):
        raise PgnasError(f"'{path}' exists and is no report; choose another name")
    for run in runs:
        if not run.folder.is_dir():
            raise PgnasError(f"'{run.folder}' is no run; pgnas report wants the folder of one")
    found = [findings_of(run) for run in runs]
    write_text(path, page_of(found))
    return found


def _ours(path: Path) -> bool:
    """Whether a file is an earlier report."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return "<title>pgnas: " in file.read(1000)
    except OSError:
        return False


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


def _run_sections(run: Findings, name: str, heading: str) -> list[str]:
    """All that is to be said of one run."""
    parts = [answer(run)]

    def section(title: str, *content: str) -> None:
        if any(content):
            parts.append(f"<section>\n<{heading}>{markup.text(title)}</{heading}>")
            parts.extend(part for part in content if part)
            parts.append("</section>")

    if run.boards:
        section(
            "Size and error",
            markup.figure(plots.size_error(run, f"{name}-size")),
            _front_table(run),
        )
        section("How sure that is", *(_sureness(board) for board in run.boards))
    section(
        "What was dropped",
        markup.figure(plots.drop_by_layer(run, f"{name}-drop")),
        _dropped_table(run),
        _layer_table(run),
    )
    if run.epochs:
        curves: list[Callable[[Findings, str], plots.Picture]] = [
            plots.loss_curve, plots.error_curve, plots.drop_over_time, plots.size_curve,
        ]  # fmt: skip
        drawn = [markup.figure(c(run, f"{name}-fit{i}")) for i, c in enumerate(curves)]
        section("The fit", '<div class="two">', *drawn, "</div>")
    races = [
        markup.figure(plots.race_curve(board, f"{name}-race{i}"))
        for i, board in enumerate(run.boards)
    ]
    if races:
        section("The race", '<div class="two">', *races, "</div>", _race_text(run))
    section("To repeat it", *_repeat(run))
    return parts


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
                str(board.budget or "none"),
            ])  # fmt: skip
    table = markup.table(
        "The front: among the candidates of a budget that were evaluated on every image, no other"
        " is both smaller and better; take one with export --candidate ID",
        ("id", "held-out error", "parameters", "multiply-adds", "budget"), rows,
    )  # fmt: skip
    return markup.folded("The front as a table", table)


def _sureness(board: Board) -> str:
    ranking = board.ranking
    within = "" if board.budget is None else f" within {board.budget}"
    so_far = " so far" if len(ranking.running) else ""
    table = markup.table(
        f"Best{so_far} of {len(ranking.errors)} candidates{within} on {ranking.images} held-out"
        " images",
        RANKING_HEADINGS, ranking_rows(board, SHOWN),
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
        "Operations and input channels whose gates the winner closes",
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
        return "<p>The ranking is not finished; <code>pgnas rank</code> goes on with it.</p>"
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
    parts.append(markup.table("What it was", ("what", "value"), rows))
    recipe = [[key, str(value)] for key, value in to_json(run.posterior.recipe).items()]
    parts.append(
        markup.folded(
            "The recipe", markup.table("The recipe of the fit", ("field", "value"), recipe)
        )
    )
    return parts

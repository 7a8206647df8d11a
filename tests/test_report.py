"""The report: what it says is what the files say, and it is a page that needs nothing else."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from pgnas_cli.canvas import STYLE, VARIABLES, themed
from pgnas_cli.drawing import posterior_of, read_candidates
from pgnas_cli.figures import expected_errors
from pgnas_cli.files import Run
from pgnas_cli.findings import findings_of, front
from pgnas_cli.page import page_of
from pgnas_cli.race import begun
from pgnas_cli.ranking import Ranking
from pgnas_cli.records import Evaluated, commands_of, evaluations_of
from pgnas_cli.supernet import gates

from .conftest import run as command


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished search on digits, with the whole network beside."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    line = ["search", "--epochs", "3", "-n", "40", "--compare", "-q", "--run", str(folder)]
    assert command(*line) == 0
    return Run(folder)


@pytest.fixture
def fitted(tmp_path: Path) -> Run:
    run = Run(tmp_path / "a <b>&$x$ 'run'")
    assert command("fit", "--epochs", "1", "-q", "--run", str(run.folder)) == 0
    return run


class Page(HTMLParser):
    """Elements with their attributes, and which of them were left open."""

    VOID = ("meta", "link", "br", "use", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.captions = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def text_of(page: str) -> str:
    """What a reader sees."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("\u00a0", " ").split())


# --- the page --------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_runs_nothing(searched: Run) -> None:
    text = searched.report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert len(text) < 5_000_000
    assert not page.all("script")
    assert not page.all("img")
    addresses = {
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "data")
    }
    assert all(address.startswith("#") or address == "data:," for address in addresses)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style
    assert not re.findall(r"url\((?!#)", text)
    assert not any(name.startswith("on") for _, a in page.elements for name in a)


def test_every_figure_and_table_has_a_name_and_ids_are_used_once(searched: Run) -> None:
    page = Page(searched.report.read_text(encoding="utf-8"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert not [name for name, times in Counter(ids).items() if times > 1]
    drawn = page.all("svg")
    assert len(drawn) == len(page.all("figure")) == 7
    for picture in drawn:
        assert picture["role"] == "img"
        assert {picture["aria-labelledby"], picture["aria-describedby"]} <= set(ids)
    for _, attributes in page.elements:
        for name in ("xlink:href", "clip-path"):
            for used in re.findall(r"#([\w-]+)", attributes.get(name, "")):
                assert used in ids
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(region["aria-label"] for region in page.all("div") if "role" in region)


def test_pictures_take_their_colours_from_the_page(searched: Run) -> None:
    text = searched.report.read_text(encoding="utf-8")
    assert not [colour for colour in VARIABLES if colour in text]
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke|color): *(?!none|var|inherit)[#a-z]\w*", drawn)
    style = text[text.index("<style>") : text.index("</style>")]
    for variable in set(re.findall(r"var\((--\w+)\)", drawn)):
        assert style.count(f"{variable}:") == 3  # light, dark, print


def test_the_same_run_gives_the_same_page(searched: Run) -> None:
    assert page_of([findings_of(searched)]) == searched.report.read_text(encoding="utf-8")


def test_the_readers_own_matplotlib_settings_change_nothing(searched: Run) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "text.color": "pink"}):
        assert set(STYLE) > {"font.size"}
        assert page_of([findings_of(searched)]) == searched.report.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here")
def test_a_browser_draws_every_figure_in_both_themes(searched: Run, tmp_path: Path) -> None:
    from PIL import Image

    inks = []
    for dark in (False, True):
        shot = tmp_path / f"{dark}.png"
        flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
        found = subprocess.run(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update",
                f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
                "--window-size=800,5000", f"--screenshot={shot}", *flags,
                searched.report.resolve().as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert "CONSOLE" not in found.stderr
        with Image.open(shot) as picture:
            grey = picture.convert("L")
            inks.append(grey.getpixel((2, 2)))
            assert len(grey.getcolors()) > 50
    assert inks[0] == 255
    assert inks[1] < 40


# --- what it says ----------------------------------------------------------------------------


def test_the_answer_is_what_evaluate_found(
    searched: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    best = searched.folder / "best.safetensors"
    capsys.readouterr()
    assert command("evaluate", str(best), "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    text = text_of(searched.report.read_text(encoding="utf-8"))
    assert f"{100 * found['error']:.1f} % test error (whole network" in text
    assert f"{100 * found['params'] / 151_930:.1f} % of the parameters" in text
    rows = {row.name: row for row in evaluations_of(searched)}
    assert set(rows) == {"best", "smallest", "twin", "whole"}
    assert rows["best"].errors == found["errors"]
    assert rows["whole"].params == 151_930


def test_dropped_channels_and_operations_are_those_that_the_winner_lacks(searched: Run) -> None:
    network, _ = posterior_of(searched)
    drawn, found = read_candidates(searched, network), findings_of(searched)
    rows = searched.ranking_table.read_text(encoding="utf-8").splitlines()
    winner = int(rows[1].split(",")[1])
    assert found.winner == winner
    keep = drawn.keep[winner]
    spans = gates(network).spans
    text = text_of(page_of([found]))
    dropped = int((~keep).sum())
    assert f"{dropped} of {len(keep)} {100 * dropped / len(keep):.1f} %" in text
    gone = sum(not bool(keep[a:b].any()) for a, b in spans.values())
    assert f"all {gone} of {len(spans)}" in text
    probability = torch.sigmoid(gates(network).drop_logit.detach())[gates(network).group]
    for layer in found.layers:
        first, last = spans[layer.name]
        assert layer.drop == pytest.approx(probability[first:last].tolist())
        assert layer.kept == int(keep[first:last].sum())
    kinds = {layer.name: layer.kind for layer in found.layers}
    assert set(kinds.values()) == {"conv 3x3", "conv 1x1", "linear"}


def test_the_front_is_that_of_comparing_all_with_all() -> None:
    for seed in range(200):
        draw = torch.Generator().manual_seed(seed)
        errors = torch.randint(0, 6, (12,), generator=draw)
        params = torch.randint(0, 6, (12,), generator=draw)
        found = front(errors, params).tolist()
        points = [(int(errors[i]), int(params[i])) for i in range(12)]
        best = {
            p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
        }
        assert sorted(points[i] for i in found) == sorted(best)
        assert [points[i][1] for i in found] == sorted(points[i][1] for i in found)


def test_errors_of_those_who_left_early_are_expected_from_the_pilots() -> None:
    draw = torch.Generator().manual_seed(0)
    images, candidates = 60, 30
    hard = torch.rand(images, generator=draw) * 0.6
    wrong = torch.rand(candidates, images, generator=draw) < hard
    race = begun(torch.arange(candidates), 5, wrong[:16], torch.randn(16, images, generator=draw))
    for candidate in range(16, candidates):
        seen = int(torch.randint(1, images + 1, (1,), generator=draw))
        race.seen[candidate] = seen
        race.errors[candidate] = wrong[candidate, race.order[:seen]].sum()
    found = expected_errors(Ranking(race, None))  # type: ignore[arg-type]
    for candidate in range(candidates):
        seen = int(race.seen[candidate])
        so_far = wrong[candidate, race.order[:seen]].sum()
        rest = wrong[:16, race.order[seen:]].double().mean(0).sum()
        assert float(found[candidate]) == pytest.approx(float((so_far + rest) / images))


# --- runs that have not come to all of it ----------------------------------------------------


def test_a_fit_alone_has_a_report_that_says_what_is_next(
    fitted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, line in (
        ("sample", ["sample", "-n", "8"]),
        ("rank", ["rank"]),
        ("evaluate", []),
    ):
        assert command("report", "--run", str(fitted.folder)) == 0
        text = fitted.report.read_text(encoding="utf-8")
        assert not Page(text).open
        assert f"pgnas {step}" in text_of(text)
        assert "<b>&$x$" not in text
        if line:
            assert command(*line, "-q", "--run", str(fitted.folder)) == 0
    assert "a &lt;b&gt;&amp;$x$ &#x27;run&#x27;" in text


def test_runs_are_put_side_by_side_with_the_options_that_differ(
    searched: Run, fitted: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "both.html"
    capsys.readouterr()
    folders = [str(searched.folder), str(fitted.folder)]
    assert command("report", *folders, "-o", str(path), "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["runs"] == folders
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    words = text_of(text)
    assert "target_params 59.4% None" in words
    assert "epochs 3 1" in words
    assert "seed 0 0" not in words
    assert command("report", *folders, "--run", folders[0]) == 1


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"schema": "pgnas.evaluation/1"}', '{"schema": "x", "networks": [1]}',
     '{"schema": "pgnas.evaluation/1", "networks": [{"name": 3}]}'],
)  # fmt: skip
def test_damaged_evaluations_are_one_line_or_left_out(
    fitted: Run, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    fitted.evaluation.write_text(content, encoding="utf-8")
    status = command("report", "--run", str(fitted.folder))
    if '"x"' in content:
        assert status == 0
    else:
        assert status == 1
        assert "evaluation.json' is damaged" in capsys.readouterr().err


def test_no_image_at_all_is_damage_not_a_division(fitted: Run) -> None:
    values: dict[str, Any] = {
        name: {"str": "x", "int": 0, "float": 0.0}[getattr(kind, "__name__", str(kind))]
        for name, kind in Evaluated.__annotations__.items()
    }
    content = {"schema": "pgnas.evaluation/1", "networks": [values]}
    fitted.evaluation.write_text(json.dumps(content), encoding="utf-8")
    assert command("report", "--run", str(fitted.folder)) == 1


def test_a_run_without_a_posterior_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report", str(tmp_path)) == 1
    assert "no run in" in capsys.readouterr().err


# --- what was done with a run ----------------------------------------------------------------


def test_command_lines_are_kept_in_order_and_can_be_typed_again(
    fitted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(fitted.folder)
    for _ in range(2):
        assert command("sample", "-n", "8", "-q", "--run", folder) == 0
    assert command("rank", "-q", "--run", folder) == 0
    lines = [entry.line for entry in commands_of(fitted)]
    assert [line.split()[1] for line in lines] == ["fit", "sample", "rank"]
    import shlex

    assert shlex.split(lines[0]) == ["pgnas", "fit", "--epochs", "1", "-q", "--run", folder]
    assert command("sample", "-n", "0", "-q", "--run", folder) == 1  # refused: nothing was done
    assert len(commands_of(fitted)) == 3
    fitted.commands.write_text("no json\n" + fitted.commands.read_text(encoding="utf-8"))
    assert len(commands_of(fitted)) == 3


def test_evaluations_go_to_the_run_that_the_networks_came_from(
    searched: Run, fitted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    moved = tmp_path / "elsewhere.safetensors"
    shutil.copy(searched.folder / "best.safetensors", moved)
    monkeypatch.chdir(tmp_path)  # no runs/ here: nothing to keep it in
    before = searched.evaluation.read_bytes()
    assert command("evaluate", str(moved), "-q") == 0
    assert searched.evaluation.read_bytes() == before
    assert command("evaluate", str(moved), "-q", "--run", str(fitted.folder)) == 1
    assert "is not the run that these networks came from" in capsys.readouterr().err
    other = tmp_path / "copy"
    shutil.copytree(searched.folder, other)
    assert command("evaluate", str(moved), "-q", "--run", str(other)) == 0
    assert "elsewhere" in {row.name for row in evaluations_of(Run(other))}


def test_a_new_fit_forgets_what_the_old_one_came_to(searched: Run, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    shutil.copytree(searched.folder, other)
    run = Run(other)
    assert run.report.exists()
    assert command("fit", "--epochs", "1", "-q", "--force", "--run", str(other)) == 0
    assert not run.report.exists()
    assert not run.evaluation.exists()


def test_words_in_a_picture_cannot_become_elements() -> None:
    svg = '<?xml version="1.0"?><svg viewBox="0 0 1 1"><metadata>x</metadata><g id="a"/></svg>'
    found = themed(svg, "n", "<b>", "a & b")
    assert "<b>" not in found
    assert "a &amp; b" in found
    assert "metadata" not in found


def test_evaluations_of_earlier_candidates_are_not_shown_as_todays(
    searched: Run, tmp_path: Path
) -> None:
    other = Run(tmp_path / "copy")
    shutil.copytree(searched.folder, other.folder)
    content = json.loads(other.evaluation.read_text(encoding="utf-8"))
    best = next(row for row in content["networks"] if row["name"] == "best")
    assert "by now" not in text_of(page_of([findings_of(other)]))
    best["candidate"] = "7" if best["candidate"] != "7" else "8"
    other.evaluation.write_text(json.dumps(content), encoding="utf-8")
    winner = findings_of(other).winner
    words = text_of(page_of([findings_of(other)]))
    assert f"The ranking's first is candidate {winner} by now" in words.replace("&#x27;", "'")
    assert command("sample", "-n", "8", "-q", "--run", str(other.folder)) == 0
    assert not other.evaluation.exists()

"""The report: what it says is what the files say, and it is a page that needs nothing else."""

import base64
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from pgnas_cli.data import load_data
from pgnas_cli.errors import PgnasError
from pgnas_cli.evaluation import evaluations_of
from pgnas_cli.formats import load
from pgnas_cli.gates import gates
from pgnas_cli.ranking import Leaderboard
from pgnas_cli.ranking.race import begun
from pgnas_cli.report.page import page_of, write_report
from pgnas_cli.report.plots import drop_over_time, expected_errors
from pgnas_cli.report.summary import front, run_summary
from pgnas_cli.report.svg import STYLE, VARIABLES, figure_of, picture_of, styled
from pgnas_cli.report.text import by_class, evaluated, times
from pgnas_cli.run import Run, commands_of
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates
from pgnas_cli.units import p_text

from ..conftest import object_of, refused
from ..conftest import run as command


@pytest.fixture
def fitted(fitted_once: Path, tmp_path: Path) -> Run:
    """A fit alone, in a folder of an awkward name."""
    run = Run(Path(shutil.copytree(fitted_once, tmp_path / "a <b>&$x$ 'run'")))
    for path in run.drawn_files():
        path.unlink()
    return run


def change_evaluations(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to each row of a run's evaluations."""
    content = json.loads(run.evaluation.read_text(encoding="utf-8"))
    for row in content["networks"]:
        change(row)
    run.evaluation.write_text(json.dumps(content), encoding="utf-8")


def winner_of(run: Run) -> int:
    winner = run_summary(run).winner
    assert winner is not None
    return winner.id


class Page(HTMLParser):
    """Elements with their attributes, and which of them were left open."""

    VOID = ("meta", "link", "br", "img", "wbr", "source")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
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


def pictures_of(page: Page) -> list[str]:
    """The SVG documents of a page."""
    places = [image["src"] for image in page.all("img")]
    places += [source["srcset"] for source in page.all("source")]
    addresses = [place.partition("data:image/svg+xml;base64,") for place in places]
    assert not any(before for before, _, _ in addresses)
    return [base64.b64decode(data, validate=True).decode() for _, _, data in addresses]


def attributes_of(svg: str) -> list[tuple[str, str]]:
    """All attributes of an SVG document, names without their namespace."""
    return [
        (name.rpartition("}")[2], value)
        for element in ElementTree.fromstring(svg).iter()
        for name, value in element.items()
    ]


def done(run: Run, *arguments: str) -> None:
    """Let a command do its work on a run."""
    assert command(*arguments, "-q", "--run", str(run.folder)) == 0


def written(run: Run) -> str:
    """The report of a run as it lies there."""
    return run.report.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees."""
    body = re.sub(r"<style.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("\u00a0", " ").split())


def words_of(run: Run) -> str:
    """What a reader sees of a run as it is now."""
    return text_of(page_of([run_summary(run)]))


# --- the page --------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_runs_nothing(searched: Run) -> None:
    text = written(searched)
    page = Page(text)
    assert not page.open
    assert len(text) < 5_000_000
    assert not page.all("script")
    addresses = {
        value
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data") and tag not in ("img", "source")
    }
    assert addresses == {"data:,"}
    assert all(set(image) == {"src", "alt"} for image in page.all("img"))
    assert all(set(source) == {"media", "srcset"} for source in page.all("source"))
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    for words in (text, *pictures_of(page)):
        assert "@import" not in words
        assert not re.findall(r"url\((?!#)", words)
    for svg in pictures_of(page):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
        assert not tags & {"script", "image", "foreignObject", "a"}
        for name, value in attributes_of(svg):
            assert name != "href" or value.startswith("#")
            assert not name.startswith("on")


def test_every_figure_and_table_has_a_name_and_ids_are_used_once(searched: Run) -> None:
    text = written(searched)
    page = Page(text)
    assert len(page.all("img")) == len(page.all("figure")) == len(page.all("figcaption")) == 8
    titles = re.findall(r"<figcaption><b>(.+?\.)</b> (.+?)</figcaption>", text)
    for image, (title, words) in zip(page.all("img"), titles, strict=True):
        assert image["alt"].replace(" %", "\u00a0%") == f"{title} {words}"
    own = [pair for _, attributes in page.elements for pair in attributes.items()]
    for pairs in (own, *map(attributes_of, pictures_of(page))):
        ids = [value for name, value in pairs if name == "id"]
        assert not [name for name, times in Counter(ids).items() if times > 1]
        for name, value in pairs:
            if name in ("href", "clip-path", "aria-labelledby", "aria-describedby"):
                assert set(re.findall(r"#([\w-]+)", value)) <= set(ids)
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(region["aria-label"] for region in page.all("div") if "role" in region)


def test_pictures_take_their_colours_from_variables_of_both_themes(searched: Run) -> None:
    text = written(searched)
    drawn = pictures_of(Page(text))
    assert len(drawn) == 8 + 3  # three of them for wide pages too
    for svg in drawn:
        sheet = svg[svg.index("<style>") : svg.index("</style>")]
        rest = svg.replace(sheet, "")
        assert not [colour for colour in VARIABLES if colour in rest.lower()]
        assert not re.findall(
            r"(?:fill|stroke|color)(?:: *|=\")(?!none|var|inherit)[#a-z]\w*", rest
        )
        light, dark = sheet.split("prefers-color-scheme: dark")
        for variable in {"--paper", *re.findall(r"var\((--\w+)\)", rest)}:
            colours = [re.findall(rf"{variable}: (#\w+);", part) for part in (light, dark)]
            assert [len(found) for found in colours] == [1, 1]
            assert colours[0] != colours[1]
            assert f"{variable}: {colours[0][0]};" in text  # the page has the same
            assert f"{variable}: {colours[1][0]};" in text


def test_the_readers_matplotlib_settings_change_no_byte_of_the_page(searched: Run) -> None:
    own = {"font.size": 30, "axes.facecolor": "red", "text.color": "pink", "axes.grid.axis": "x",
           "svg.fonttype": "path", "font.sans-serif": ["serif"], "scatter.marker": "x"}  # fmt: skip
    assert {"font.size", "text.color", "svg.fonttype"} < set(STYLE)
    with matplotlib.rc_context(own):
        assert page_of([run_summary(searched)]) == written(searched)


CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-sync", "--disable-background-networking", "--disable-component-update",
    "--enable-logging=stderr", "--window-size=800,5000",
]  # fmt: skip
DARK = ["--blink-settings=preferredColorScheme=0"]
in_chromium = pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium here")


def photographed(page: Path, folder: Path, dark: bool) -> Image.Image:
    """A page as Chromium shows it, 800 pixels wide."""
    shot = folder / f"{dark}.png"
    found = subprocess.run(
        [*CHROMIUM, *(DARK if dark else []), f"--user-data-dir={folder / 'profile'}",
         f"--screenshot={shot}", page.resolve().as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in found.stderr
    with Image.open(shot) as picture:
        return picture.convert("RGB")


def pixels(picture: Image.Image) -> Counter[tuple[int, int, int]]:
    """How often each colour occurs."""
    return Counter({found: times for times, found in picture.getcolors(2**24)})


@in_chromium
def test_a_browser_draws_every_figure_in_both_themes(searched: Run, tmp_path: Path) -> None:
    images = re.findall(r"<img ([^>]+)>", written(searched))
    alone = tmp_path / "alone.html"
    placed = (
        f'<img style="position: absolute; left: 0; top: {500 * place}px" {image}>'
        for place, image in enumerate(images)
    )
    alone.write_text(
        '<meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<body style="background: #00ff00">{"".join(placed)}'
    )
    light, dark = ((255,) * 3, (27, 31, 36)), ((20, 23, 26), (230, 233, 236))
    for theme, (paper, ink) in enumerate((light, dark)):
        page = photographed(searched.report, tmp_path, dark=theme == 1)
        assert page.getpixel((2, 2)) == paper
        assert len(page.convert("L").getcolors()) > 50
        shown = photographed(alone, tmp_path, dark=theme == 1)
        for place in range(len(images)):
            found = pixels(shown.crop((0, 500 * place, 400, 500 * place + 150)))
            assert (0, 255, 0) not in found
            assert found[paper] > 10_000
            assert found[ink] > 20
            assert sum(n for colour, n in found.items() if max(colour) - min(colour) > 60) > 20


@in_chromium
def test_nothing_is_wider_than_the_window_of_a_telephone(searched: Run, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(
        '<body style="margin: 0"><iframe style="border: 0; width: 390px; height: 5000px"'
        f' scrolling="no" src="{searched.report.resolve().as_uri()}"></iframe>'
    )
    shown = photographed(frame, tmp_path, dark=False)
    assert len(pixels(shown.crop((0, 0, 375, 5000)))) > 50
    assert set(pixels(shown.crop((375, 0, 390, 5000)))) == {(255, 255, 255)}  # the margin


# --- what it says ----------------------------------------------------------------------------


def test_the_answer_is_what_evaluate_found(searched: Run) -> None:
    rows = {row.name: row for row in evaluations_of(searched)}
    found = object_of("evaluate", str(searched.folder / "best.safetensors"))
    text = text_of(written(searched))
    assert f"{100 * found['error']:.1f} % test error (original network" in text
    assert f"{100 * found['params'] / 151_930:.1f} % of the parameters" in text
    assert set(rows) == {"best", "twin", "whole"}
    assert rows["best"].errors == found["errors"]
    assert rows["whole"].params == 151_930


def test_the_best_comes_first_then_the_original_and_random_baselines_last(searched: Run) -> None:
    summary = run_summary(searched)
    found = evaluated(summary), times(summary)
    for table in found:
        assert table is not None
        names = [row[0] if isinstance(row[0], str) else row[0][0] for row in table.rows]
        assert (names[0], names[1], names[-1]) == ("best", "whole", "twin")


def test_milliseconds_stand_beside_the_machine_they_are_of(searched: Run) -> None:
    rows = json.loads(searched.evaluation.read_text())["networks"]
    best = next(row for row in rows if row["name"] == "best")
    table = times(run_summary(searched))
    assert table is not None
    assert best["processor"]
    assert best["processor"] in table.caption
    cells = [cell[0] for cell in table.rows[0][1:]]
    measured = [best[key] for key in ("one", "many", "onnx_one", "onnx_many") if best[key]]
    assert cells == [f"{time['slim']:.3g}" for time in measured]


def test_the_error_of_each_class_is_that_of_counting_its_images(searched: Run) -> None:
    test = load_data("digits", seed=0).test
    names = [f"{name}.safetensors" for name in ("best", "twin", "whole")]
    wrong = [set(row.wrong) for row in evaluations_of(searched)]
    found = by_class(run_summary(searched))
    assert found is not None
    assert len(found.rows) == 10
    assert found.headings[2:4] == ("best", "whole")
    assert sorted(found.headings[2:]) == sorted(name.removesuffix(".safetensors") for name in names)
    order = [[row.name for row in evaluations_of(searched)].index(n) for n in found.headings[2:]]
    shares = []
    for name, images, *errors in found.rows:
        members = {i for i, label in enumerate(test.labels.tolist()) if label == int(name)}
        assert int(images) == len(members)
        counts = [len(wrong[place] & members) for place in order]
        for (error, between), count in zip(errors, counts, strict=True):
            found = binomtest(count, len(members)).proportion_ci(method="wilson")
            assert error == f"{100 * count / len(members):.1f} %"
            assert between == f"{100 * found.low:.1f}-{100 * found.high:.1f}"
        shares.append(counts[0] / len(members))
    assert shares == sorted(shares, reverse=True)


def test_dropped_channels_and_operations_are_those_that_the_winner_lacks(searched: Run) -> None:
    network, posterior = posterior_of(searched)
    (budget,) = searched.budgets()
    found = run_summary(searched)
    rows = searched.ranking_table(budget).read_text(encoding="utf-8").splitlines()
    winner = int(rows[1].split(",")[1])
    assert winner_of(searched) == winner
    keep = read_candidates(searched, network, posterior, budget).keep[winner]
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
    found = expected_errors(Leaderboard(None, race, None, 0.0))  # type: ignore[arg-type]
    for candidate in range(candidates):
        seen = int(race.seen[candidate])
        so_far = wrong[candidate, race.order[:seen]].sum()
        rest = wrong[:16, race.order[seen:]].double().mean(0).sum()
        assert float(found[candidate]) == pytest.approx(float((so_far + rest) / images))


# --- runs that have not come to all of it ----------------------------------------------------


def test_a_fit_alone_has_a_report_that_says_what_is_next(fitted: Run) -> None:
    for step, line in (
        ("sample", ["sample", "-n", "8", "--force"]),
        ("rank", ["rank"]),
        ("evaluate", []),
    ):
        done(fitted, "report")
        text = written(fitted)
        assert not Page(text).open
        assert f"pgnas {step}" in text_of(text)
        assert "<b>&$x$" not in text
        if line:
            done(fitted, *line)
    assert "a &lt;b&gt;&amp;$x$ &#39;run&#39;" in text


def test_runs_are_put_side_by_side_with_the_options_that_differ(
    searched: Run, fitted: Run, tmp_path: Path
) -> None:
    path = tmp_path / "both.html"
    folders = [str(searched.folder), str(fitted.folder)]
    assert object_of("report", *folders, "-o", str(path))["runs"] == folders
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    words = text_of(text)
    assert "target_params 59.4% 60%" in words
    assert "epochs 2 3" in words
    assert "seed 0 0" not in words
    assert "recipe {" not in words
    assert command("report", *folders, "--run", folders[0]) == 1


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\x00\xfe", None])
def test_commands_that_are_no_such_file_are_left_out_and_metrics_are_damaged(
    fitted: Run, content: bytes | None
) -> None:
    for path in (fitted.commands, fitted.metrics):
        path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    assert commands_of(fitted) == []
    with pytest.raises(PgnasError, match=r"metrics\.jsonl' is damaged"):
        run_summary(fitted)


def test_impossible_metrics_are_damage_and_can_be_moved_away(fitted: Run) -> None:
    record = json.loads(fitted.metrics.read_text(encoding="utf-8").splitlines()[-1])
    for change in ({"drop_histogram": []}, {"drop_histogram": [0] * 10}, {"loss": float("nan")}):
        fitted.metrics.write_text(json.dumps({**record, **change}) + "\n", encoding="utf-8")
        with pytest.raises(PgnasError, match="without the fit's curves"):
            run_summary(fitted)
    fitted.metrics.unlink()
    assert not Page(page_of([run_summary(fitted)])).open


def test_a_report_is_not_written_over_anything_else(searched: Run) -> None:
    (searched.folder / "notes.html").write_text("<p>mine</p>", encoding="utf-8")
    for name, message in (
        ("best.safetensors", "has no known ending; possible: .html"),
        ("notes.html", "exists and is not a report"),
    ):
        path = searched.folder / name
        before = path.read_bytes()
        with pytest.raises(PgnasError, match=message):
            write_report([searched], path)
        assert path.read_bytes() == before


# --- what was done with a run ----------------------------------------------------------------


def test_command_lines_are_kept_in_order_and_can_be_typed_again(fitted: Run) -> None:
    folder = str(fitted.folder)
    for _ in range(2):
        done(fitted, "sample", "-n", "8", "--force")
    done(fitted, "rank")
    lines = [entry.line for entry in commands_of(fitted)]
    made = ["fit", "sample", "rank", "export"]
    assert [line.split()[1] for line in lines] == [*made, "sample", "rank"]
    assert shlex.split(lines[4]) == ["pgnas", "sample", "-n", "8", "--force", "-q", "--run", folder]
    assert command("sample", "-n", "0", "-q", "--run", folder) == 1  # refused: nothing was done
    assert len(commands_of(fitted)) == 6
    fitted.commands.write_text("no json\n" + fitted.commands.read_text(encoding="utf-8"))
    assert len(commands_of(fitted)) == 6


def test_evaluations_go_to_the_run_that_the_networks_came_from(
    searched: Run, fitted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copy(searched.folder / "best.safetensors", tmp_path / "elsewhere.safetensors")
    monkeypatch.chdir(tmp_path)  # no runs/ here: nothing to keep it in
    before = searched.evaluation.read_bytes()
    line = ["evaluate", str(moved), "-q"]
    assert command(*line) == 0
    assert searched.evaluation.read_bytes() == before
    other = refused(*line, "--run", str(fitted.folder))
    assert "is not the run that these networks came from" in other
    assert command(*line, "--run", str(searched.folder)) == 0
    assert "elsewhere" in {row.name for row in evaluations_of(searched)}


def test_no_character_of_a_file_acts_on_the_page_or_in_a_picture(searched: Run) -> None:
    """An escape sequence, a turned direction, half of a character: in every row, line and title."""
    evil = "\x1b[2J\x00\u202egnp\udc80"
    change_evaluations(
        searched, lambda row: row.update(name=row["name"] + evil[:-1], processor=evil)
    )
    entry = json.loads(searched.commands.read_text(encoding="utf-8").splitlines()[-1])
    line = json.dumps({**entry, "line": f"pgnas rank {evil}"})
    searched.commands.write_text(f"{line}\n{line}\n", encoding="utf-8")
    page = page_of([run_summary(searched)])
    shown = r"\x1b[2J\x00\u202egnp\udc80"
    assert f"forward on {shown};" in page
    assert f"pgnas rank {shown}&#10;pgnas rank {shown}</pre>" in page
    figure, axes = figure_of(2, evil, evil)
    axes.plot([1, 2], label=evil)
    svg = picture_of(figure, "a", "b").svg
    ElementTree.fromstring(svg)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", page + svg)


def test_words_of_a_run_and_in_a_picture_cannot_become_elements(fitted: Run) -> None:
    found = run_summary(fitted)
    hostile = '"><b>x</b>&'
    layers = tuple(dataclasses.replace(layer, name=hostile) for layer in found.layers)
    page = Page(page_of([dataclasses.replace(found, layers=layers)]))
    assert not page.open
    assert len(page.all("b")) == len(page.all("figure"))
    assert any(hostile in image["alt"] for image in page.all("img"))

    @styled
    def drawn() -> str:
        figure, axes = figure_of(2.0, "<b>", "a & b")
        axes.plot([1], [1], label="</svg>")
        return picture_of(figure, "", "").svg

    tree = ElementTree.fromstring(drawn())
    assert {"<b>", "a & b", "</svg>"} <= {element.text for element in tree.iter()}
    assert "metadata" not in {element.tag.rpartition("}")[2] for element in tree.iter()}


def test_evaluations_of_earlier_candidates_are_not_shown_as_todays(searched: Run) -> None:
    winner = winner_of(searched)
    assert evaluations_of(searched)[0].candidate == str(winner)
    other = {"candidate": str(winner + 1)}
    change_evaluations(searched, lambda row: row["name"] == "best" and row.update(other))
    words = words_of(searched)
    assert "the ranking has another by now" in words
    assert f"candidate {winner} " in words  # what is known of the winner of today
    assert "test error (original" not in words


def test_a_network_is_called_what_its_file_says_not_what_the_file_is_called(
    searched: Run, tmp_path: Path
) -> None:
    searched.evaluation.unlink()
    other = str((winner_of(searched) + 1) % 40)
    for name, more in (
        ("whole", ["--candidate", other]),  # a candidate in disguise
        ("best", ["--candidate", "whole"]),  # the open super-network in disguise
        ("mine", []),
    ):
        done(searched, "export", str(tmp_path / f"{name}.safetensors"), *more)
    shutil.copy(searched.folder / "whole.safetensors", tmp_path / "dense.safetensors")
    names = ("whole", "best", "mine", "dense")
    files = [str(tmp_path / f"{name}.safetensors") for name in names]
    done(searched, "evaluate", *files)
    found = run_summary(searched)
    roles = {row.name: found.role(row) for row in found.evaluated}
    assert roles == {"whole": "candidate", "best": "open", "mine": "best", "dense": "whole"}


def test_the_verdict_is_the_paired_test_on_the_test_images(searched: Run) -> None:
    data = load_data("digits", seed=0)
    assert data.test is not None
    wrong = {}
    for name in ("best", "whole"):
        network = load(searched.folder / f"{name}.safetensors")
        with torch.no_grad():
            logits = network(data.preprocessing.normalised(data.test.pixels))
        wrong[name] = logits.argmax(1) != data.test.labels
    only = [int((wrong[a] & ~wrong[b]).sum()) for a, b in (("best", "whole"), ("whole", "best"))]
    p = binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
    words = text_of(written(searched))
    assert f"gets {only[0]} wrong that the original network gets right" in words
    assert f"and {only[1]} right that the original network gets wrong" in words
    assert f"p = {p:.3f}" in words


def test_a_small_p_is_not_zero() -> None:
    assert [p_text(p) for p in (1.0, 0.0123, 0.0006, 1e-56)] == [
        "p = 1.000", "p = 0.012", "p = 0.001", "p < 0.001",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"processor": "another, 32 threads"}, {"precision": "bfloat16"}, {"images_digest": "0"}],
)
def test_networks_of_another_machine_precision_or_images_are_not_compared(
    searched: Run, change: dict[str, str]
) -> None:
    before = words_of(searched)
    change_evaluations(searched, lambda row: row["name"] == "whole" and row.update(change))
    words = words_of(searched)
    assert "(original network" in before and "(original network" not in words
    assert "precision or batch size: whole." in words


def test_rows_of_other_conditions_are_left_out_and_named(searched: Run) -> None:
    change_evaluations(searched, lambda row: row.update(at="2020-01-01T00:00:00+00:00"))
    done(searched, "evaluate", str(searched.folder / "best.safetensors"), "-b", "3")
    words = words_of(searched)
    assert "torch, 3 images" in words
    assert "with another precision or batch size: twin, whole." in words
    assert "(original network" not in words


def test_what_is_not_final_or_not_the_posterior_is_said_at_the_top(searched: Run) -> None:
    done(searched, "sample", "-n", "3000", "--force")
    done(searched, "rank", "--time-limit", "0.0001")
    words = words_of(searched)
    undecided = len(run_summary(searched).boards[0].race.walking())
    assert undecided
    assert f"{undecided} candidates might still be better" in words
    assert "so far" in words.split("multibranch-tiny on")[0]
    assert f"{undecided} are not decided, and not shown" in words
    done(searched, "sample", "-n", "8", "--baseline", "permuted", "--force")
    done(searched, "rank")
    assert "a baseline (permuted), not the posterior" in words_of(searched)


def test_the_front_is_that_of_each_budget(searched: Run) -> None:
    done(searched, "sample", "-n", "12", "--max-params", "57%,50%", "--force")
    done(searched, "rank", "--exhaustive")
    text = page_of([run_summary(searched)])
    part = text_of(text[text.index("The front: ") : text.index("Statistical confidence")])
    assert 0 < part.index("57 % of the parameters") < part.index("50 % of the parameters")


@pytest.mark.parametrize(
    ("drift", "words"), [(0.004, "p has settled"), (0.2, "p still moves"), (0.0, "p is frozen")]
)
def test_the_page_says_whether_p_has_converged(fitted: Run, drift: float, words: str) -> None:
    summary = run_summary(fitted)
    last = dataclasses.replace(summary.epochs[-1], drift=drift)
    picture = drop_over_time((*summary.epochs[:-1], last))
    assert f"{words}: {drift:.3f} on average" in picture.text

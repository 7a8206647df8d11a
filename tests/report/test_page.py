"""The report: what it says is what the files say, and it is a page that needs nothing else."""

import base64
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
import torch
from PIL import Image

from pgnas_cli.evaluation import evaluations_of
from pgnas_cli.gates import gates
from pgnas_cli.ranking import Leaderboard
from pgnas_cli.ranking.race import begun
from pgnas_cli.report.content import front, run_summary
from pgnas_cli.report.page import page_of
from pgnas_cli.report.plots import expected_errors
from pgnas_cli.report.svg import STYLE, VARIABLES, figure_of, picture_of, styled
from pgnas_cli.run import Run, commands_of
from pgnas_cli.run.posterior import posterior_of
from pgnas_cli.sampling import read_candidates

from ..conftest import run as command


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished search on digits, with the whole network beside."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    line = ["search", "--epochs", "2", "-n", "40", "--compare", "-q", "--run", str(folder)]
    assert command(*line) == 0
    return Run(folder)


@pytest.fixture
def fitted(fitted_once: Path, tmp_path: Path) -> Run:
    """A fit alone, in a folder of an awkward name."""
    run = Run(Path(shutil.copytree(fitted_once, tmp_path / "a <b>&$x$ 'run'")))
    for path in run.drawn_files():
        path.unlink()
    return run


@pytest.fixture
def copy(searched: Run, tmp_path: Path) -> Run:
    """A copy of the search, for tests that change it."""
    return Run(Path(shutil.copytree(searched.folder, tmp_path / "copy")))


class Page(HTMLParser):
    """Elements with their attributes, and which of them were left open."""

    VOID = ("meta", "link", "br", "img")

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


def pictures_of(page: Page) -> list[str]:
    """The SVG documents of a page."""
    addresses = [image["src"].partition("data:image/svg+xml;base64,") for image in page.all("img")]
    assert not any(before for before, _, _ in addresses)
    return [base64.b64decode(data, validate=True).decode() for _, _, data in addresses]


def attributes_of(svg: str) -> list[tuple[str, str]]:
    """All attributes of an SVG document, names without their namespace."""
    return [
        (name.rpartition("}")[2], value)
        for element in ElementTree.fromstring(svg).iter()
        for name, value in element.items()
    ]


def text_of(page: str) -> str:
    """What a reader sees."""
    body = re.sub(r"<style.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("\u00a0", " ").split())


# --- the page --------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_runs_nothing(searched: Run) -> None:
    text = searched.report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert len(text) < 5_000_000
    assert not page.all("script")
    addresses = {
        value
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data") and tag != "img"
    }
    assert addresses == {"data:,"}
    assert all(set(image) == {"src", "alt"} for image in page.all("img"))
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
    text = searched.report.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.all("img")) == len(page.all("figure")) == len(page.all("figcaption")) == 7
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
    text = searched.report.read_text(encoding="utf-8")
    drawn = pictures_of(Page(text))
    assert len(drawn) == 7
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


def test_the_same_run_gives_the_same_page(searched: Run) -> None:
    assert page_of([run_summary(searched)]) == searched.report.read_text(encoding="utf-8")


def test_the_readers_own_matplotlib_settings_change_nothing(searched: Run) -> None:
    own = {"font.size": 30, "axes.facecolor": "red", "text.color": "pink", "axes.grid.axis": "x",
           "svg.fonttype": "path", "font.sans-serif": ["serif"], "scatter.marker": "x"}  # fmt: skip
    assert {"font.size", "text.color", "svg.fonttype"} < set(STYLE)
    with matplotlib.rc_context(own):
        assert page_of([run_summary(searched)]) == searched.report.read_text(encoding="utf-8")


def photographed(page: Path, folder: Path, dark: bool) -> Image.Image:
    """A page as Chromium shows it, 800 pixels wide."""
    shot = folder / f"{dark}.png"
    found = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
            "--window-size=800,5000", f"--screenshot={shot}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []), page.resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in found.stderr
    with Image.open(shot) as picture:
        return picture.convert("RGB")


def pixels(picture: Image.Image) -> Counter[tuple[int, int, int]]:
    """How often each colour occurs."""
    return Counter({found: times for times, found in picture.getcolors(2**24)})


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here")
def test_a_browser_draws_every_figure_in_both_themes(searched: Run, tmp_path: Path) -> None:
    images = re.findall(r"<img ([^>]+)>", searched.report.read_text(encoding="utf-8"))
    alone = tmp_path / "alone.html"
    placed = (
        f'<img style="position: absolute; left: 0; top: {500 * place}px" {image}>'
        for place, image in enumerate(images)
    )
    alone.write_text(
        '<meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<body style="background: #00ff00">{"".join(placed)}'
    )
    for dark, paper, ink in (
        (False, (255,) * 3, (27, 31, 36)),
        (True, (20, 23, 26), (230, 233, 236)),
    ):
        page = photographed(searched.report, tmp_path, dark)
        assert page.getpixel((2, 2)) == paper
        assert len(page.convert("L").getcolors()) > 50
        shown = photographed(alone, tmp_path, dark)
        for place in range(len(images)):
            found = pixels(shown.crop((0, 500 * place, 400, 500 * place + 150)))
            assert (0, 255, 0) not in found
            assert found[paper] > 10_000
            assert found[ink] > 20
            assert sum(n for colour, n in found.items() if max(colour) - min(colour) > 60) > 20


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium here")
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


def test_the_answer_is_what_evaluate_found(
    searched: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    best = searched.folder / "best.safetensors"
    capsys.readouterr()
    assert command("evaluate", str(best), "--json", "-q") == 0
    found = json.loads(capsys.readouterr().out)
    text = text_of(searched.report.read_text(encoding="utf-8"))
    assert f"{100 * found['error']:.1f} % test error (original network" in text
    assert f"{100 * found['params'] / 151_930:.1f} % of the parameters" in text
    rows = {row.name: row for row in evaluations_of(searched)}
    assert set(rows) == {"best", "twin", "whole"}
    assert rows["best"].errors == found["errors"]
    assert rows["whole"].params == 151_930


def test_dropped_channels_and_operations_are_those_that_the_winner_lacks(searched: Run) -> None:
    network, _ = posterior_of(searched)
    (budget,) = searched.budgets()
    drawn, found = read_candidates(searched, network, budget), run_summary(searched)
    rows = searched.ranking_table(budget).read_text(encoding="utf-8").splitlines()
    winner = int(rows[1].split(",")[1])
    assert found.winner is not None
    assert found.winner.id == winner
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
    found = expected_errors(Leaderboard(None, race, None, 0.0))  # type: ignore[arg-type]
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
    assert "a &lt;b&gt;&amp;$x$ &#39;run&#39;" in text


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
    assert "target_params 59.4% 60%" in words
    assert "epochs 2 3" in words
    assert "seed 0 0" not in words
    assert "recipe {" not in words
    assert command("report", *folders, "--run", folders[0]) == 1


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"schema": "pgnas.evaluation/1"}', '{"schema": "x", "networks": [1]}',
     '{"schema": "pgnas.evaluation/1", "networks": [{"name": 3}]}'],
)  # fmt: skip
def test_damaged_evaluations_are_one_line(
    fitted: Run, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    fitted.evaluation.write_text(content, encoding="utf-8")
    assert command("report", "--run", str(fitted.folder)) == 1
    assert "evaluation.json' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [("images", 0), ("errors", -5), ("errors", 10**6), ("params", 10**400), ("wrong", [1, 1]),
     ("wrong", [10**9]), ("name", "\ud800"), ("one.slim", float("nan")), ("many.whole", 0.0),
     ("held_out_errors", 10**400), ("many.batch", 0), ("device", 3)],
)  # fmt: skip
def test_impossible_numbers_are_damage(
    copy: Run, capsys: pytest.CaptureFixture[str], field: str, value: object
) -> None:
    content = json.loads(copy.evaluation.read_text(encoding="utf-8"))
    row = content["networks"][0]
    *latency, name = field.split(".")
    (row[latency[0]] if latency else row)[name] = value
    copy.evaluation.write_text(json.dumps(content), encoding="utf-8")
    assert command("report", "--run", str(copy.folder)) == 1
    assert "evaluation.json' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl", "commands.jsonl"])
@pytest.mark.parametrize("what", ["nested", "folder", "binary"])
def test_files_that_are_no_such_files_are_one_line(
    fitted: Run, capsys: pytest.CaptureFixture[str], name: str, what: str
) -> None:
    path = fitted.folder / name
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"[" * 100_000 if what == "nested" else b"\xff\x00\xfe")
    status = command("report", "--run", str(fitted.folder))
    err = capsys.readouterr().err
    assert status == (0 if name == "commands.jsonl" else 1)
    assert name == "commands.jsonl" or f"{name}' is damaged" in err
    assert "Traceback" not in err


def test_impossible_metrics_are_damage_and_can_be_moved_away(
    fitted: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(fitted.metrics.read_text(encoding="utf-8").splitlines()[-1])
    for change in ({"drop_histogram": []}, {"drop_histogram": [0] * 10}, {"loss": float("nan")}):
        fitted.metrics.write_text(json.dumps({**record, **change}) + "\n", encoding="utf-8")
        assert command("report", "--run", str(fitted.folder)) == 1
        assert "without the fit's curves" in capsys.readouterr().err
    fitted.metrics.unlink()
    assert command("report", "--run", str(fitted.folder)) == 0


@pytest.mark.parametrize("name", ["posterior.safetensors", "best.safetensors", "notes.html"])
def test_a_report_is_not_written_over_anything_else(
    copy: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = copy.folder / name
    if not path.exists():
        path.write_text("<p>mine</p>", encoding="utf-8")
    before = path.read_bytes()
    assert command("report", "--run", str(copy.folder), "-o", str(path)) == 1
    assert path.read_bytes() == before
    assert command("report", "--run", str(copy.folder), "-o", str(copy.report)) == 0
    assert command("report", str(copy.folder / "best.safetensors")) == 1
    assert "is not the folder of a run" in capsys.readouterr().err


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
    made = ["fit", "sample", "rank", "export"]
    assert [line.split()[1] for line in lines] == [*made, "sample", "rank"]
    assert shlex.split(lines[4]) == ["pgnas", "sample", "-n", "8", "-q", "--run", folder]
    assert command("sample", "-n", "0", "-q", "--run", folder) == 1  # refused: nothing was done
    assert len(commands_of(fitted)) == 6
    fitted.commands.write_text("no json\n" + fitted.commands.read_text(encoding="utf-8"))
    assert len(commands_of(fitted)) == 6


def test_evaluations_go_to_the_run_that_the_networks_came_from(
    searched: Run, copy: Run, fitted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
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
    assert command("evaluate", str(moved), "-q", "--run", str(copy.folder)) == 0
    assert "elsewhere" in {row.name for row in evaluations_of(copy)}


def test_a_new_fit_forgets_what_the_old_one_came_to(copy: Run) -> None:
    assert copy.report.exists()
    assert command("fit", "--epochs", "1", "-q", "--force", "--run", str(copy.folder)) == 0
    assert not copy.report.exists()
    assert not copy.evaluation.exists()


def test_words_of_a_run_cannot_become_elements(fitted: Run) -> None:
    found = run_summary(fitted)
    hostile = '"><b>x</b>&'
    layers = tuple(dataclasses.replace(layer, name=hostile) for layer in found.layers)
    page = Page(page_of([dataclasses.replace(found, layers=layers)]))
    assert not page.open
    assert len(page.all("b")) == len(page.all("figure"))
    assert any(hostile in image["alt"] for image in page.all("img"))


def test_words_in_a_picture_cannot_become_elements() -> None:
    @styled
    def drawn() -> str:
        figure, axes = figure_of(2.0, "<b>", "a & b")
        axes.plot([1], [1], label="</svg>")
        return picture_of(figure, "", "").svg

    tree = ElementTree.fromstring(drawn())
    assert {"<b>", "a & b", "</svg>"} <= {element.text for element in tree.iter()}
    assert "metadata" not in {element.tag.rpartition("}")[2] for element in tree.iter()}


def test_evaluations_of_earlier_candidates_are_not_shown_as_todays(copy: Run) -> None:
    content = json.loads(copy.evaluation.read_text(encoding="utf-8"))
    best = next(row for row in content["networks"] if row["name"] == "best")
    first = run_summary(copy).winner
    assert first is not None
    winner = first.id
    assert best["candidate"] == str(winner)
    best["candidate"] = "7" if winner != 7 else "8"
    copy.evaluation.write_text(json.dumps(content), encoding="utf-8")
    words = text_of(page_of([run_summary(copy)]))
    assert "the ranking has another by now" in words
    assert f"candidate {winner} " in words  # what is known of the winner of today
    assert "test error (original" not in words
    assert command("sample", "-n", "8", "-q", "--run", str(copy.folder)) == 0
    assert not copy.evaluation.exists()
    assert not copy.report.exists()


def test_a_network_is_called_what_its_file_says_not_what_the_file_is_called(
    copy: Run, tmp_path: Path
) -> None:
    copy.evaluation.unlink()
    winner = run_summary(copy).winner
    assert winner is not None
    other = "3" if winner.id != 3 else "4"
    for name, more in (
        ("whole", ["--candidate", other]),  # a candidate in disguise
        ("best", ["--candidate", "whole"]),  # the open super-network in disguise
        ("mine", []),
    ):
        path = str(tmp_path / f"{name}.safetensors")
        assert command("export", path, *more, "-q", "--run", str(copy.folder)) == 0
    shutil.copy(copy.folder / "whole.safetensors", tmp_path / "dense.safetensors")
    names = ("whole", "best", "mine", "dense")
    files = [str(tmp_path / f"{name}.safetensors") for name in names]
    assert command("evaluate", *files, "-q", "--run", str(copy.folder)) == 0
    found = run_summary(copy)
    roles = {row.name: found.role(row) for row in found.evaluated}
    assert roles == {"whole": "candidate", "best": "open", "mine": "best", "dense": "whole"}


def test_the_verdict_is_the_paired_test_on_the_test_images(searched: Run) -> None:
    from scipy.stats import binomtest

    import pgnas_cli
    from pgnas_cli.data import load_data

    data = load_data("digits", seed=0)
    assert data.test is not None
    assert data.test.pixels is not None
    wrong = {}
    for name in ("best", "whole"):
        network = pgnas_cli.load(searched.folder / f"{name}.safetensors")
        with torch.no_grad():
            logits = network(data.preprocessing.normalised(data.test.pixels))
        wrong[name] = logits.argmax(1) != data.test.labels
    only = [int((wrong[a] & ~wrong[b]).sum()) for a, b in (("best", "whole"), ("whole", "best"))]
    p = binomtest(only[0], sum(only), 0.5).pvalue if sum(only) else 1.0
    words = text_of(searched.report.read_text(encoding="utf-8"))
    assert f"errs on {only[0]} that the original network gets right" in words
    assert f"is right on {only[1]} where that errs" in words
    assert f"p = {p:.3f}" in words


def test_rows_of_other_conditions_are_left_out_and_named(copy: Run) -> None:
    content = json.loads(copy.evaluation.read_text(encoding="utf-8"))
    for row in content["networks"]:
        row["at"] = "2020-01-01T00:00:00+00:00"
    copy.evaluation.write_text(json.dumps(content), encoding="utf-8")
    best = str(copy.folder / "best.safetensors")
    assert command("evaluate", best, "-b", "3", "-q", "--run", str(copy.folder)) == 0
    words = text_of(page_of([run_summary(copy)]))
    assert "ms, 3 images" in words
    assert "Left out, since evaluated on other images, devices or batches: twin, whole." in words
    assert "(original network" not in words


def test_what_is_not_final_or_not_the_posterior_is_said_at_the_top(copy: Run) -> None:
    where = ["-q", "--run", str(copy.folder)]
    assert command("sample", "-n", "3000", *where) == 0
    assert command("rank", "--time-limit", "0.0001", *where) == 0
    words = text_of(page_of([run_summary(copy)]))
    undecided = len(run_summary(copy).boards[0].race.walking())
    assert undecided
    assert f"{undecided} candidates might still be better" in words
    assert "so far" in words.split("multibranch-tiny on")[0]
    assert f"{undecided} are not decided, and not shown" in words
    assert command("sample", "-n", "8", "--baseline", "permuted", *where) == 0
    assert command("rank", *where) == 0
    words = text_of(page_of([run_summary(copy)]))
    assert "a baseline (permuted), not the posterior" in words


def test_the_front_is_that_of_each_budget(copy: Run) -> None:
    where = ["-q", "--run", str(copy.folder)]
    assert command("sample", "-n", "12", "--max-params", "57%,50%", *where) == 0
    assert command("rank", "--exhaustive", *where) == 0
    found = run_summary(copy)
    text = page_of([found])
    part = text_of(text[text.index("The front: ") : text.index("Statistical confidence")])
    assert [str(board.candidates.budget) for board in found.boards] == [
        "57 % of the parameters", "50 % of the parameters",
    ]  # fmt: skip
    assert part.index("57 % of") < part.index("50 % of")

"""What README and docs say works: commands and Python blocks are run, links and options exist."""

import ast
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main

from pgnas_cli.cli import app
from pgnas_cli.registry.build import build_backbone
from pgnas_cli.training import EpochRecord

from .conftest import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
         *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
ADDED = ("index", "changes", "contributing", "security", "example")  # to the site, of docs/pages.py
RUN = ("README.md", "tutorial.md", "python.md", "choosing.md", "backbones.md")

# What a test cannot have, and what takes its place: smaller things of the same kind.
STAND_INS = {
    "/imagenet": "photos", "photos/ ": "photos ", "--pretrained": "",
    "--backbone resnet50": "--backbone multibranch-tiny",
    "timm/tf_efficientnet_lite0": "timm/test_resnet.r160_in1k",
    "timm/resnet18": "timm/test_resnet", "--weights lite0.safetensors": "",
    "--backbone small": "--backbone multibranch-tiny",
    "--backbone mynets:small": "--backbone multibranch-tiny",
    "--preset published": "",
}  # fmt: skip
QUICK = {
    "search": ["--epochs", "1", "--batch-size", "8", "-n", "6", "-j", "0", "--no-compare"],
    "fit": ["--epochs", "1", "--batch-size", "8", "-j", "0"],
    "sample": ["--n", "6"],
    "rank": ["-j", "0"],
    "export": ["-j", "0", "--force"],
    "evaluate": ["-j", "0", "-b", "2"],
    "predict": ["-j", "0"],
    "finetune": ["--epochs", "1", "-j", "0", "--force"],
}


@dataclass(frozen=True)
class Block:
    """A command line or a Python block, and where it stands."""

    kind: str  # "pgnas", "python"
    text: str
    line: int


FENCED_OR_COMMAND = re.compile(r"(?ms)^```([^\n]*)\n(.*?)^```|^    (pgnas [^\n]*)")


def blocks(page: Path) -> list[Block]:
    """Everything on a page that a reader may copy, in order."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in FENCED_OR_COMMAND.finditer(text):
        line = text.count("\n", 0, match.end()) + 1
        if match[3]:
            found.append(Block("pgnas", match[3].partition("  #")[0].strip(), line))
        elif match[1] == "python":
            found.append(Block("python", match[2].rstrip("\n"), line))
    return found


def inline(page: Path) -> list[str]:
    """Commands in running text; those of a measured block may be wrong on purpose."""
    apart = re.compile(r"```.*?```|<!-- figures: .*?<!-- end -->", re.DOTALL)
    plain = apart.sub("", page.read_text(encoding="utf-8"))
    joined = re.sub(r"\s+", " ", plain)
    return re.findall(r"`(pgnas [a-z]+(?: [^`]*)?)`", joined)


def accepted(line: str) -> None:
    """Whether the command and every option of it exist, by the parser itself."""
    group = typer.main.get_command(app)
    name, *rest = shlex.split(line)[1:]
    command = group.commands[name]  # type: ignore[attr-defined]
    known = {flag for parameter in command.params for flag in parameter.opts}
    for word in rest:
        if word.startswith("-"):
            assert word.split("=")[0] in known | {"--help"}, f"{line}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_are_named_exist(page: Path) -> None:
    lines = [block.text for block in blocks(page) if block.kind == "pgnas"]
    for line in [*lines, *inline(page)]:
        name = line.split()[1]
        if name.isupper() or page.name == "commands.md":
            continue
        accepted(line)


def rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the table whose first line starts with `heading`, without its two head lines."""
    _, found, table = page.read_text(encoding="utf-8").partition(f"\n{heading}")
    assert found, heading
    lines = table.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_super_networks_has_the_recipes_of_the_code() -> None:
    told = ""
    for name, _, _, published, default in rows(ROOT / "docs" / "backbones.md", "| name | what"):
        if "/NAME" in name:
            continue
        backbone = build_backbone(name.strip("`"), classes=10, size=32)
        told = told if published == "the same" else published
        for text, recipe in ((told, backbone.presets.get("published", {})),
                             (default, dataclasses.asdict(backbone.recipe))):  # fmt: skip
            plain = text.replace(",", "")
            for field, pattern in (("l2", r"l2 ([\d.]+)"), ("epochs", r"(\d+) epochs"),
                                   ("batch_size", r"batch (\d+)")):  # fmt: skip
                for number in re.findall(pattern, plain):
                    assert float(number) == recipe[field], (name, text)


def test_every_field_of_an_epoch_is_documented() -> None:
    cells = [row[0] for row in rows(ROOT / "docs" / "files.md", "| field | meaning")]
    named = re.findall(r"`(\w+)`", " ".join(cells))
    assert named == [field.name for field in dataclasses.fields(EpochRecord)]


def test_the_reference_is_the_one_that_typer_writes(tmp_path: Path) -> None:
    path = tmp_path / "commands.md"
    subprocess.run(
        [sys.executable, "-m", "typer", "pgnas_cli.cli", "utils", "docs", "--name", "pgnas",
         "--title", "Commands", "--output", str(path)],
        check=True, capture_output=True, cwd=ROOT, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    there = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8") == there, "write it again: make reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if there.suffix in (".png", ".svg"):
            assert 1_000 < there.stat().st_size < 300_000, target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in slugs, target


@pytest.mark.parametrize("name", RUN)
def test_what_a_page_says_can_be_typed_in_order(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Callable[..., Path],
    fitted_once: Path,
) -> None:  # fmt: skip
    page = ROOT / name if (ROOT / name).exists() else ROOT / "docs" / name
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    photo_folder(train=10, size=(64, 64))
    if name == "python.md":  # what its reader has
        shutil.copy(fitted_once / "best.safetensors", ".")
    tried = 0
    for block in blocks(page):
        where = f"{name}:{block.line}"
        if block.kind == "python":
            if "def " in block.text and "mynets" in page.read_text(encoding="utf-8"):
                Path("mynets.py").write_text(block.text, encoding="utf-8")
            exec(compile(block.text, where, "exec"), {})
            tried += 1
            continue
        line = block.text
        for there, here in STAND_INS.items():
            line = line.replace(there, here)
        words = shlex.split(line)[1:]
        if any(word.isupper() and len(word) > 1 for word in words):
            continue  # FILE, NAME, RUN
        if "--resume" in words:
            unfinished(words)
        more = QUICK.get(words[0], [])
        status = run(*words, *more, *small_images(words))
        assert status == 0, f"{where}: {line}"
        tried += 1
    assert tried > 1


def small_images(words: list[str]) -> list[str]:
    """Photos are 224 pixels unless told otherwise, which is slow."""
    photos = "photos" in words and words[0] in ("fit", "search")
    return ["--img-size", "32"] if photos and "--img-size" not in words else []


def unfinished(words: list[str]) -> None:
    """Take the posterior away, so that there is something to go on with."""
    (Path(words[words.index("--run") + 1]) / "posterior.safetensors").unlink()


def tables(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.tables", *options], cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip


def test_figures_are_those_that_the_data_give() -> None:
    done = tables("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_figure_that_the_data_do_not_give_is_named_and_computed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    page, data = tmp_path / "docs" / "results.md", tmp_path / "docs" / "data" / "latency.jsonl"
    before = page.read_text(encoding="utf-8")
    row = json.loads(data.read_text(encoding="utf-8").splitlines()[-1])
    newer = json.dumps({**row, "small": 0.125, "fast": 0.25, "macs": 0.09})
    data.write_text(data.read_text(encoding="utf-8") + newer + "\n", encoding="utf-8")
    done = tables("--check", "--root", str(tmp_path))
    assert (done.returncode, done.stdout.strip()) == (1, f"{Path('docs/results.md')}: latency")
    assert page.read_text(encoding="utf-8") == before
    assert tables("--root", str(tmp_path)).returncode == 0
    (line,) = set(page.read_text(encoding="utf-8").splitlines()) - set(before.splitlines())
    assert line.split(" | ")[2:] == ["0.09", "0.12", "0.25", "0.72 |"]  # 0.09 / 0.125


@pytest.mark.parametrize("name", ["README.md", "results.md", "questions.md", "choosing.md"])
def test_measured_shares_stand_in_blocks_that_are_computed(name: str) -> None:
    page = ROOT / name if (ROOT / name).exists() else ROOT / "docs" / name
    marked = re.compile(r"<!-- figures: .*?<!-- end -->", re.DOTALL)
    by_hand = marked.sub("", page.read_text(encoding="utf-8"))
    assert not re.findall(r".*\d\.\d+ ?%.*|.*\+-.*", by_hand)


def imported(source: str) -> set[str]:
    """What a source imports of this package: modules, dotted, and names of the package itself."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "pgnas_cli":
            found |= {f"pgnas_cli.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name for name in found if name.partition(".")[0] == "pgnas_cli"}


PLUG_IN = {"pgnas_cli", "pgnas_cli.registry", "pgnas_cli.data"}  # what a backbone may need
EXAMPLES = [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.py"))]


@pytest.mark.parametrize(
    "name",
    ["README.md", "docs/python.md", "docs/tutorial.md", "docs/backbones.md", *EXAMPLES],
)
def test_what_readers_copy_imports_only_what_is_public(name: str) -> None:
    path = ROOT / name
    texts = [block.text for block in blocks(path) if block.kind == "python"]
    found = set().union(*map(imported, texts or [path.read_text(encoding="utf-8")]))
    assert found
    assert found <= (PLUG_IN if name == "docs/backbones.md" else {"pgnas_cli"})


def test_the_import_test_can_fail() -> None:
    source = "import torch, pgnas_cli\nfrom pgnas_cli.gates import draw\nimport pgnas_cli.run"
    assert imported(source) == {"pgnas_cli", "pgnas_cli.gates", "pgnas_cli.run"}
    assert imported("def f():\n    from pgnas_cli import sizes") == {"pgnas_cli.sizes"}


@pytest.mark.skipif(not find_spec("mkdocs"), reason="mkdocs is not installed")
def test_every_page_is_on_the_site(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    pages = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    expected = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert set(pages) - {"404"} == expected | set(ADDED)
    front, readme = pages["index"], (ROOT / "README.md").read_text(encoding="utf-8")
    assert front.count("<table") == readme.count("\n|---")
    assert 'href="tutorial.html"' in front and 'src="pictures/report.png"' in front
    for name, text in pages.items():
        article = text.partition("<article")[2].partition("</article")[0]
        assert "<!--" not in article, name
        assert not re.search("<(script|link|img)[^>]* (src|href)=.?https?:", text), name


def test_the_example_runs_and_ends_on_the_test_split(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py")], cwd=tmp_path, text=True,
        capture_output=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    error = float(lines[-1].removeprefix("test error ").split()[0])
    assert error < 5
    assert "of 151930 parameters" in lines[-2]
    assert int(lines[-2].split()[0]) < 0.6 * 151_930

"""The house: who may import whom, what is slow to import, and what must not occur at all."""

import ast
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import pgnas_cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pgnas_cli"
PRODUCT = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "backbones").glob("*.py")])
# Their faces hold only files that import no torch; what builds networks is named by its file.
LIGHT_FACES = ("registry", "run", "cli")


def rooms() -> list[str]:
    """Names of the rooms in reading order, as the package's docstring lists them."""
    return re.findall(r"^    (\w+)  ", pgnas_cli.__doc__ or "", re.MULTILINE)


def files_of(room: str) -> list[Path]:
    """The files of a room: one, or all of a folder."""
    single = PACKAGE / f"{room}.py"
    return [single] if single.exists() else sorted((PACKAGE / room).glob("*.py"))


def imported(source: str, depth: int) -> set[tuple[str, ...]]:
    """What a source imports of this package, outside of `if TYPE_CHECKING`.

    `depth` is that of the file below the package: 1 for errors.py, 2 for graph/nodes.py. Parts of
    the dotted path from the package on: ("graph", "nodes").
    """
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.level == depth:
            for alias in node.names:
                path = tuple(node.module.split(".")) if node.module else (alias.name,)
                found.add(path)
    return {path for path in found if not path[0].startswith("__")}


def beside(source: str) -> set[str]:
    """The files of its own room that a source imports."""
    return {path[0] for path in imported(source, 1)}


def test_the_reading_order_lists_every_room() -> None:
    files = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(rooms()) == files | folders


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_earlier_ones_by_names_from_their_faces(room: str) -> None:
    order = rooms()
    for path in files_of(room):
        for wanted in imported(path.read_text(), 1 if path.parent == PACKAGE else 2):
            assert order.index(wanted[0]) < order.index(room), (path.name, wanted)
            assert len(wanted) == 1 or wanted[0] in LIGHT_FACES, (path.name, wanted)


@pytest.mark.parametrize("room", [r for r in rooms() if (PACKAGE / r).is_dir()])
def test_files_of_a_room_import_in_one_direction_and_its_face_lists_at_most_30_names(
    room: str,
) -> None:
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert len(names) <= 30
    needed = {p.stem: beside(p.read_text()) - {p.stem} for p in files_of(room)}
    needed = {name: found & set(needed) for name, found in needed.items() if name != "__init__"}
    while needed:
        free = [name for name, found in needed.items() if not found]
        assert free, f"these import each other: {sorted(needed)}"
        needed = {name: found - set(free) for name, found in needed.items() if name not in free}


def test_the_layer_test_can_fail() -> None:
    source = "from ..cli import main\nfrom .. import units\nfrom .nodes import Graph"
    assert imported(source, 2) == {("cli",), ("units",)}
    assert beside(source) == {"nodes"}
    assert imported("if TYPE_CHECKING:\n    from ..cli import main", 2) == set()


def test_ruff_refuses_functions_beyond_the_limits_and_none_at_them() -> None:
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise",
               "--stdin-filename", str(PACKAGE / "units.py"), "-"]  # fmt: skip
    for more, refused in ((0, set()), (1, {"PLR0913", "PLR0915", "C901"})):
        parameters = ", ".join(f"a{i}" for i in range(9 + more))
        statements, branches = (40 + more) * "\n    print()", (11 + more) * "\n    if a: print()"
        source = f"def f({parameters}): pass\ndef g():{statements}\ndef h(a):{branches}\n"
        done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
        assert set(re.findall(r" (PLR\d+|C901) ", done.stdout)) == refused, done.stdout


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: p.stem)
def test_nothing_is_pickled_or_swallowed(path: Path) -> None:
    source = path.read_text()
    for banned in ("pickle", "torch.save", "torch.load", "eval(", "exec("):
        assert banned not in re.sub(r"\w+\.eval\(|\)\.eval\(", "", source), banned
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            assert not all(isinstance(step, ast.Pass) for step in node.body), node.lineno


COMMANDS = ["search", "fit", "sample", "rank", "export", "evaluate", "predict", "report",
            "finetune", "inflate", "profile", "backbones", "runs"]  # fmt: skip


def printed(*arguments: str) -> list[str]:
    """The lines that a Python process of its own writes on stdout."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_help_and_the_package_cost_no_import_of_torch() -> None:
    slow = ("torch", "timm", "scipy", "numpy", "sklearn", "matplotlib")
    commands = [[], *([name] for name in COMMANDS)]
    code = (
        "import sys, pgnas_cli\nfrom pgnas_cli.cli import main\n"
        f"for command in {commands}:\n"
        "    try: main([*command, '--help'])\n    except SystemExit: pass\n"
        f"    print([m for m in {slow} if m in sys.modules])\n"
        "pgnas_cli.load\nprint('torch' in sys.modules)"
    )
    lines = printed("-c", code)
    assert sum("Usage" in line for line in lines) == len(commands)
    assert [line for line in lines if line.startswith("[")] == len(commands) * ["[]"]
    assert lines[-1] == "True"  # so the test can fail


def test_help_costs_little_more_than_typer_itself(tmp_path: Path) -> None:
    """CPU time of --help against that of a typer program with one option, taking turns."""
    least = tmp_path / "least.py"
    least.write_text(
        "import typer\napp = typer.Typer(add_completion=False)\n"
        "@app.command()\ndef a(n: int = 3): pass\n@app.command()\ndef b(): pass\napp()\n"
    )
    ours, bare = [], []
    for _ in range(3):
        bare.append(cpu_seconds([str(least), "a", "--help"]))
        ours.append(cpu_seconds(["-m", "pgnas_cli", "fit", "--help"]))
    assert min(ours) < 2 * min(bare)


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_list_of_commands_is_complete_and_fits_a_terminal() -> None:
    lines = printed("-m", "pgnas_cli", "--help")
    panel = "\n".join(lines).partition("─ Commands ─")[2].splitlines()
    rows = "\n".join(line.strip("│ ") for line in panel if line.startswith("│"))
    _, *listed = re.split(r"^(\w+)  +", rows, flags=re.MULTILINE)
    assert listed[::2] == COMMANDS
    assert all(text.strip().endswith(".") and "..." not in text for text in listed[1::2])
    assert max(map(len, lines)) <= 80

"""The house: who may import whom, what is slow to import, and what must not occur at all."""

import ast
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import pgnas_cli

ROOT = Path(__file__).parent.parent
PRODUCT = sorted([*(ROOT / "pgnas_cli").glob("*.py"), *(ROOT / "backbones").glob("*.py")])


def reading_order() -> list[str]:
    """Module names as listed in the package's docstring."""
    return re.findall(r"^    (\w+)  ", pgnas_cli.__doc__ or "", re.MULTILINE)


def imported(source: str) -> set[str]:
    """Modules of this package that a source imports, outside of `if TYPE_CHECKING`."""
    tree = ast.parse(source)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and node.level:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
    return {name for name in found if name and not name.startswith("__")}


def test_the_reading_order_lists_every_module() -> None:
    files = {p.stem for p in (ROOT / "pgnas_cli").glob("*.py")} - {"__init__", "__main__"}
    assert set(reading_order()) == files


@pytest.mark.parametrize("module", reading_order())
def test_no_module_imports_a_later_one(module: str) -> None:
    order = reading_order()
    source = (ROOT / "pgnas_cli" / f"{module}.py").read_text()
    later = {n for n in imported(source) if n in order and order.index(n) >= order.index(module)}
    assert not later


def test_the_layer_test_can_fail() -> None:
    assert imported("from .cli import main\nfrom . import files") == {"cli", "files"}
    assert imported("if TYPE_CHECKING:\n    from .cli import main") == set()


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: p.stem)
def test_modules_stay_below_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: p.stem)
def test_nothing_is_pickled_or_swallowed(path: Path) -> None:
    source = path.read_text()
    for banned in (
        "pickle",
        "torch.save",
        "torch.load",
        "eval(",
        "exec(",
        "except Exception: pass",
    ):
        assert banned not in re.sub(r"\w+\.eval\(|\)\.eval\(", "", source), banned
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            assert not all(isinstance(step, ast.Pass) for step in node.body), node.lineno


COMMANDS = ["search", "fit", "sample", "rank", "export", "evaluate", "report", "finetune",
            "inflate", "backbones"]  # fmt: skip


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_costs_no_import_of_torch(command: list[str]) -> None:
    code = (
        "import sys\nfrom pgnas_cli.cli import main\n"
        f"try: main({[*command, '--help']!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'scipy', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Usage" in done.stdout


def test_help_costs_little_more_than_typer_itself(tmp_path: Path) -> None:
    """CPU time of --help against that of a typer program with one option, taking turns."""
    least = tmp_path / "least.py"
    least.write_text(
        "import typer\napp = typer.Typer(add_completion=False, rich_markup_mode=None)\n"
        "@app.command()\ndef a(n: int = 3): pass\n@app.command()\ndef b(): pass\napp()\n"
    )
    ours, bare = [], []
    for _ in range(5):
        bare.append(cpu_seconds([str(least), "a", "--help"]))
        ours.append(cpu_seconds(["-m", "pgnas_cli", "fit", "--help"]))
    assert min(ours) < 2 * min(bare)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands blocks back")
def test_a_process_on_the_cpu_keeps_its_large_blocks_and_flushes_denormal_numbers() -> None:
    """Page faults of ten products of 38 MB, before and after the device was named."""
    work = (
        "import resource, torch\nfrom pgnas_cli.machine import device_of\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): images * 2\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "torch.set_num_threads(1)\nimages = torch.zeros(10_000_000)\nplain = faults()\n"
        "device_of('cpu')\nfaults()\n"
        "print(plain, faults(), float(torch.tensor(1e-39) * 0.5))"
    )
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    plain, tuned, denormal = map(float, done.stdout.split())
    assert denormal == 0
    version = tuple(map(int, platform.libc_ver()[1].split(".")))
    if plain < 5_000 or version < (2, 35):
        pytest.skip("huge pages, or a glibc that does not keep blocks above 32 MB")
    assert 10 * tuned < 5_000


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_list_of_commands_is_complete_and_fits_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgnas_cli", "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    listed = done.stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_help_test_can_fail() -> None:
    code = "import sys, pgnas_cli\npgnas_cli.load\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, pgnas_cli\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgnas_cli", "backbones"], capture_output=True, text=True, check=True
    )
    assert "multibranch-tiny  (from pgnas)" in done.stdout

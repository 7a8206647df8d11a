"""The wheel: built from what is under version control, it holds all that the commands need."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in ("pgnas_cli", "backbones"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "out", "."],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (found,) = (folder / "out").glob("*.whl")
    return found


def test_every_module_and_data_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package, source in (("pgnas_cli", "pgnas_cli"), ("pgnas_backbones", "backbones")):
        for path in (ROOT / source).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert f"{package}/{path.relative_to(ROOT / source).as_posix()}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_alone_has_commands_and_super_networks(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    code = (
        "import functools, pgnas_cli, pgnas_backbones, pgnas_cli.latency as latency\n"
        f"assert pgnas_cli.__file__.startswith({str(unpacked)!r}), pgnas_cli.__file__\n"
        f"assert pgnas_backbones.__file__.startswith({str(unpacked)!r})\n"
        "latency.forward_times = functools.partial(latency.forward_times, seconds=0.05)\n"
        "from pgnas_cli.cli import main\n"
        "main(['search', '--epochs', '1', '-n', '4', '--no-compare', '-q', '--run', 'r'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "report.html").exists()

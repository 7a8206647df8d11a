"""`pgnas predict`, and the script that does it without pgnas."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import object_of, refused, said
from ..photos import CLASSES, classifier_file, noisy_photos

ROOT = Path(__file__).parent.parent.parent
RED = "photos/val/red/0.jpg"


@pytest.fixture(autouse=True)
def _photos_and_networks(_in_an_empty_folder: None) -> None:
    noisy_photos(Path("photos"), each=6)
    classifier_file(Path("a.safetensors"))


def test_text_json_and_csv_say_the_same_in_the_order_of_the_names() -> None:
    status, out, err = said("predict", "a.safetensors", "photos", "-j", "0", "--top", "2")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    table = object_of("predict", "a.safetensors", "photos", "-j", "0", "--top", "2")
    _, out, _ = said("predict", "a.safetensors", "photos", "-j", "0", "--top", "2", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (table["file"], table["unreadable"]) == ("a.safetensors", [])
    assert len(lines) == len(rows) == len(table["images"]) == 18
    names = [str(p) for name in CLASSES for p in sorted(Path("photos/val", name).rglob("*.jpg"))]
    assert [row["image"] for row in rows] == names
    for line, row, one in zip(lines, rows, table["images"], strict=True):
        (a, p), (b, q) = (found.values() for found in one["predictions"])
        assert line == f"{one['image']}  {a} {100 * p:.1f} %, {b} {100 * q:.1f} %"
        assert list(row.values()) == [one["image"], a, f"{p:.6f}", b, f"{q:.6f}"]
    assert list(rows[0]) == ["image", "class_1", "probability_1", "class_2", "probability_2"]


def test_an_evaluation_that_belongs_to_no_run_names_predict_as_the_next_step() -> None:
    status, _, err = said("evaluate", "a.safetensors", "--data", "photos", "-j", "0", "-b", "2")
    assert (status, err.splitlines()[-1]) == (0, "next: pgnas predict a.safetensors photos")


def test_what_cannot_be_read_is_one_line_each_and_the_rest_is_predicted() -> None:
    Path("photos/val/red/00.jpg").write_text("hello")
    words = ["predict", "a.safetensors", "gone.jpg", "photos/val/red", RED, "-j", "0"]
    for more in ([], ["-q"], ["--csv"], ["--json"]):
        status, out, err = said(*words, "--top", "1", *more)
        assert status == 1
        assert err.splitlines() == [
            "unreadable: 'gone.jpg' (No such file or directory)",
            "unreadable: 'photos/val/red/00.jpg' (no image that Pillow knows)",
            "error: 2 of 9 images cannot be read",
        ]
        if more == ["--json"]:
            table = json.loads(out)
            assert len(table["images"]) == 7
            lost = [one["image"] for one in table["unreadable"]]
            assert lost == ["gone.jpg", "photos/val/red/00.jpg"]
        else:
            assert len(out.splitlines()) == 7 + (more == ["--csv"])


def typed_in(content: bytes | None, *more: str) -> subprocess.CompletedProcess[str]:
    """`pgnas predict a.safetensors -` with these bytes on stdin; None: closed."""
    line = [sys.executable, "-m", "pgnas_cli", "predict", "a.safetensors", "-", *more]
    if content is None:
        line = ["sh", "-c", 'exec "$@" <&-', "sh", *line]
    return subprocess.run(
        line, input=None if content is None else content.decode("utf-8", "surrogateescape"),
        capture_output=True, text=True, errors="surrogateescape", encoding="utf-8", check=False,
    )  # fmt: skip


def test_a_pipe_is_no_image() -> None:
    os.mkfifo("pipe.jpg")
    status, _, err = said("predict", "a.safetensors", "pipe.jpg", RED, "-j", "0")
    assert status == 1
    assert err.splitlines()[0] == "unreadable: 'pipe.jpg' (it is no regular file)"


def test_paths_are_read_from_stdin_whatever_their_bytes() -> None:
    odd = b"photos/\xff \xe4.jpg"
    Path("photos", odd[7:].decode("utf-8", "surrogateescape")).write_bytes(Path(RED).read_bytes())
    done = typed_in(f"{RED}\r\n\n".encode() + odd + b"\nphotos/val/blue\n", "--json", "--top", "1")
    assert (done.returncode, done.stderr) == (0, "")
    images = json.loads(done.stdout)["images"]
    assert [one["image"] for one in images[:2]] == [RED, odd.decode("utf-8", "surrogateescape")]
    (first,), (second,) = (one["predictions"] for one in images[:2])
    assert first["class"] == second["class"]
    assert first["probability"] == pytest.approx(second["probability"], abs=1e-6)
    assert len(images) == 2 + 6
    done = typed_in(b"\n \n")
    assert (done.returncode, done.stderr) == (
        1, "error: stdin has no paths; expected one image or folder a line\n",
    )  # fmt: skip
    done = typed_in(None)
    assert (done.returncode, done.stderr) == (
        1, "error: '-' reads paths from stdin, and stdin is closed; name images or a folder\n",
    )  # fmt: skip


def test_a_reader_that_leaves_or_never_was_ends_it_quietly() -> None:
    pgnas = [sys.executable, "-m", "pgnas_cli"]
    line = [*pgnas, "predict", "a.safetensors", *40 * ["photos"], "--csv"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline().startswith(b"image,class_1,")
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 1
    gone = ["sh", "-c", 'exec "$@" >&-', "sh", *pgnas, "--version"]
    done = subprocess.run(gone, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.safetensors", RED], "no file 'none.safetensors'"),
        ([RED, "a.safetensors"], "is not a whole safetensors file"),
        (["none.onnx", RED], "no file 'none.onnx'"),
        (["a.safetensors", "empty"], "no images in 'empty'; read are .jpg and"),
        (["a.safetensors", RED, "--csv", "--json"], "--csv and --json are mutually exclusive"),
        (["a.safetensors", "-", "-"], "'-' is there more than once"),
        (["A.ONNX", RED], "'A.ONNX' is not an ONNX file"),
        (["empty.onnx", RED], "'empty.onnx' cannot be read: it is no regular file"),
        (["a.safetensors", RED, "--top", "0"], "--top 0 is out of range; possible: 1 or more"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str) -> None:
    Path("empty").mkdir()
    Path("empty.onnx").mkdir()
    Path("A.ONNX").write_text("none")
    assert message in refused("predict", *words)


@pytest.mark.parametrize("channels", [3, 1])
def test_the_script_in_the_documents_gives_the_same_without_pgnas_and_torch(channels: int) -> None:
    """Their packages are blocked."""
    classifier_file(Path("a.onnx"), channels)
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (script,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
                 if "pgnas_cli" not in block)  # fmt: skip
    assert len(script.splitlines()) <= 20
    Path("predict.py").write_text(script, encoding="utf-8")
    blocked = (
        "import sys, runpy\n"
        "for name in ('torch', 'torchvision', 'timm', 'pgnas_cli'): sys.modules[name] = None\n"
        "del sys.argv[0]\nrunpy.run_path(sys.argv[0])"
    )
    photos = sorted(map(str, Path("photos").rglob("*.jpg")))
    done = subprocess.run(
        [sys.executable, "-c", blocked, "predict.py", "a.onnx", *photos], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = object_of("predict", "a.onnx", *photos)
    lines = done.stdout.splitlines()
    assert len(lines) == 18
    for line, one in zip(lines, table["images"], strict=True):
        name, *pairs = line.split(" ")
        assert name == one["image"]
        assert pairs[::2] == [found["class"] for found in one["predictions"]]
        for share, found in zip(pairs[1::2], one["predictions"], strict=True):
            assert float(share) == pytest.approx(found["probability"], abs=1e-4)
    assert len({one["predictions"][0]["class"] for one in table["images"]}) > 1

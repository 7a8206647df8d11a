"""What a report says of the errors of a run: matrix, pairs, reliability and photos."""

import base64
import dataclasses
import html
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pgnas_cli.data import thumbnail
from pgnas_cli.evaluation import Evaluation, confusion_of, evaluations_of
from pgnas_cli.interpretation import answers_of
from pgnas_cli.report.mistakes import (
    FEW_CLASSES,
    PIXELS,
    WORST,
    Album,
    changed,
    interpreted,
    matrix,
    order_of,
    pairs,
    worst,
)
from pgnas_cli.report.page import _path, page_of
from pgnas_cli.report.plots import confusion, reliability
from pgnas_cli.report.summary import run_summary
from pgnas_cli.run import Run

from ..conftest import refused, said
from ..conftest import run as command
from ..networks import seeded
from .test_page import Page, attributes_of, change_evaluations, text_of, written

NO_PHOTOS = Album(None, 0)


def thumbnails(page: str) -> list[Image.Image]:
    """The JPEG images of a page."""
    kind = "data:image/jpeg;base64,"
    found = [one["src"] for one in Page(page).all("img") if one["src"].startswith(kind)]
    return [Image.open(io.BytesIO(base64.b64decode(one.removeprefix(kind)))) for one in found]


def many_classes(row: Evaluation, classes: int, images: int = 4000) -> Evaluation:
    """The evaluation of a made-up network that confuses each class with its partner."""
    draw = seeded(classes)
    labels = torch.arange(images) % classes
    spread = torch.randint(classes, (images,), generator=draw)
    kind = torch.rand(images, generator=draw)
    said = torch.where(kind < 0.2, labels ^ 1, torch.where(kind < 0.3, spread, labels))
    wrong = (said != labels).nonzero()[:, 0].tolist()
    errors, totals = (labels[which].bincount(minlength=classes).tolist()
                      for which in (torch.tensor(wrong), slice(None)))  # fmt: skip
    names = [f"class {i}" for i in range(classes)]
    confidence = torch.rand(images, generator=draw, dtype=torch.float64)
    return dataclasses.replace(
        row, errors=len(wrong), images=images, wrong=tuple(wrong), top5_errors=None,
        by_class=tuple(zip(names, errors, totals, strict=True)),
        answers=answers_of(labels, said, confidence, classes, lambda i: f"val/{i}.jpg"),
    )  # fmt: skip


def test_the_matrix_holds_the_counts_and_shares_of_every_pair_of_classes(searched: Run) -> None:
    rows = interpreted(run_summary(searched))
    assert [name for name, _ in rows] == ["the best", "the original network"]
    order = order_of(rows)
    for name, row in rows:
        counts = confusion_of(row)
        found = matrix(name, row, order)
        assert found is not None
        assert [*found.classes] == [str(i) for i in order]  # the same for both
        assert sorted(found.classes) == [str(i) for i in range(10)]
        for true, cells in found.rows:
            for said_class, cell in zip(found.classes, cells, strict=True):
                images = counts[int(true), int(said_class)]
                assert cell.images == images
                assert cell.share == pytest.approx(float(images / counts[int(true)].sum()))
                assert cell.right == (true == said_class)
    page = written(searched)
    assert "Confusion matrix of the best: rows are true classes" in text_of(page)
    best = confusion_of(rows[0][1])
    assert page.count('<td class="right"') + page.count('<td class="wrong"') == sum(
        int(((confusion_of(row) > 0) | torch.eye(10).bool()).sum()) for _, row in rows
    )
    assert int(best.sum()) == rows[0][1].images


def test_beyond_twenty_classes_the_matrix_is_a_picture_beside_the_most_confused_pairs(
    searched: Run,
) -> None:
    summary = run_summary(searched)
    first = summary.evaluated[0]
    few = many_classes(first, FEW_CLASSES)
    assert matrix("it", few, order_of([("it", few)])) is not None
    for classes in (100, 1000):
        row = many_classes(first, classes)
        order = order_of([("it", row)])
        assert matrix("it", row, order) is None
        picture = confusion("it", row, order)
        assert f"{classes} classes" in picture.text
        named = [f"class {i}<" in picture.wider for i in range(classes)]
        assert all(named) if classes == 100 else not any(named)
        assert "class 1<" not in picture.svg
        assert len(picture.svg) < 900_000
        assert sum(name == "href" for name, _ in attributes_of(picture.svg)) > 500
        table = pairs([("it", row), ("that", row)])
        assert table is not None
        counts = confusion_of(row).fill_diagonal_(0)
        assert [int(line[3][0]) for line in table.rows] == (
            counts.flatten().sort(descending=True).values[:20].tolist()
        )
        for true, other, images, cell, beside in table.rows:
            a, b = (int(name.removeprefix("class ")) for name in (true, other))
            assert (int(cell[0]), int(images)) == (counts[a, b], row.by_class[a][2])
            assert beside == cell


def test_the_page_stays_below_five_million_bytes_with_a_thousand_classes(searched: Run) -> None:
    summary = run_summary(searched)
    rows = tuple(many_classes(row, 1000) for row in summary.evaluated)
    page = page_of([dataclasses.replace(summary, evaluated=rows)])
    assert not Page(page).open
    assert len(page) < 5_000_000
    assert "most frequent confusions of the best" in text_of(page)


def test_more_classes_than_a_picture_holds_are_listed_alone(
    searched: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their matrix, of 80 GB for 100,000 classes, is not made."""
    monkeypatch.delattr("pgnas_cli.report.mistakes.confusion_of")
    summary = run_summary(searched)
    rows = tuple(many_classes(row, 2002) for row in summary.evaluated[:1])
    words = text_of(page_of([dataclasses.replace(summary, evaluated=rows)], photos=False))
    assert "most frequent confusions" in words and "Confusion matrix of" not in words


def test_the_reliability_curve_says_the_calibration_error_of_both(searched: Run) -> None:
    rows = interpreted(run_summary(searched))
    words = reliability(rows).text
    for name, row in rows:
        assert row.answers is not None
        total = sum(abs(b.right - b.images * b.confidence) for b in row.answers.bins)
        assert f"{name}: {100 * total / row.images:.1f} %" in words


def test_mistakes_without_photos_are_named(searched: Run) -> None:
    rows = interpreted(run_summary(searched))
    for name, row in rows:
        assert row.answers is not None
        gallery = worst(name, row, NO_PHOTOS)
        assert gallery is not None and gallery.table is not None
        expected = row.answers.mistakes[:WORST]
        assert [cells[0] for cells in gallery.table.rows] == [one.file for one in expected]
        assert f"{expected[0].file} " in text_of(written(searched))


def test_what_changed_is_the_images_that_one_alone_gets_wrong(searched: Run) -> None:
    rows = interpreted(run_summary(searched))
    (_, best), (_, whole) = rows
    found = changed(rows, NO_PHOTOS)
    only = [set(best.wrong) - set(whole.wrong), set(whole.wrong) - set(best.wrong)]
    assert [gallery.title for gallery in found] == [
        "Only the best is wrong", "Only the original network is wrong",
    ]  # fmt: skip
    for gallery, row, images in zip(found, (best, whole), only, strict=True):
        assert row.answers is not None
        names = [one.file for one in row.answers.mistakes if one.image in images]
        assert [photo.file for photo in gallery.photos] == names[:12]
        total = f"{len(images)}" if len(images) <= 12 else f"12 of {len(images)}"
        assert gallery.caption.startswith(f"{total} images")


def test_evaluations_of_older_versions_have_a_page(searched: Run) -> None:
    change_evaluations(searched, lambda row: row.pop("answers"))
    assert all(row.answers is None for row in evaluations_of(searched))
    words = text_of(page_of([run_summary(searched)]))
    assert "Error of each class" in words and "Confusion matrix" not in words


@pytest.fixture
def photo_run(photo_folder: Callable[..., Path], tmp_path: Path) -> Run:
    """A network of photos that errs, evaluated in its run."""
    folder = photo_folder(test=8)
    assert command(
        "fit", "--data", str(folder), "--backbone", "multibranch-tiny", "--img-size", "24", "-b",
        "8", "-j", "0", "--epochs", "1", "--run", "r", "-q",
    ) == 0  # fmt: skip
    file = str(tmp_path / "whole.safetensors")
    assert command("export", file, "--candidate", "whole", "--run", "r", "-q") == 0
    assert command("evaluate", file, "--run", "r", "-j", "0", "-q") == 0
    return Run(Path("r"))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_worst_mistakes_are_shown_as_the_photos_that_they_are(photo_run: Run) -> None:
    assert command("report", "--run", "r", "-q") == 0
    (row,) = evaluations_of(photo_run)
    assert row.answers is not None and row.answers.mistakes
    shown = thumbnails(written(photo_run))
    assert len(shown) == min(WORST, row.errors)
    for one, small in zip(row.answers.mistakes, shown, strict=False):
        assert max(small.size) == 96  # small photos are not enlarged
        with Image.open(Path("photos") / one.file) as photo:
            true = photo.convert("RGB").resize((1, 1)).getpixel((0, 0))
        found = small.convert("RGB").resize((1, 1)).getpixel((0, 0))
        assert isinstance(true, tuple) and isinstance(found, tuple)
        assert max(abs(a - b) for a, b in zip(true, found, strict=True)) < 8


def test_photos_are_left_out_on_request_and_where_they_are_gone(photo_run: Run) -> None:
    assert command("report", "--run", "r", "-q", "--no-photos") == 0
    (row,) = evaluations_of(photo_run)
    assert row.answers is not None
    name = row.answers.mistakes[0].file
    page = written(photo_run)
    assert not thumbnails(page) and name in text_of(page)
    (Path("photos") / name).write_bytes(b"no image")
    assert command("report", "--run", "r", "-q") == 0
    assert len(thumbnails(written(photo_run))) == min(WORST, row.errors) - 1
    shutil.move("photos", "elsewhere")
    assert command("report", "--run", "r", "-q") == 0
    page = written(photo_run)
    assert not thumbnails(page) and name in text_of(page)
    assert "No photos: the folder of the fit is no longer there." in text_of(page)


def test_images_of_another_folder_are_neither_shown_nor_compared(photo_run: Run) -> None:
    """Of the same name, with as many images of the same names."""
    Path("other").mkdir()
    shutil.copytree("photos", "other/photos")
    for file in Path("other/photos/val").rglob("*.jpg"):
        Image.new("RGB", (64, 48), "grey").save(file)
    (before,) = evaluations_of(photo_run)
    shutil.copy("whole.safetensors", "again.safetensors")
    line = ["evaluate", "again.safetensors", "--run", "r", "-j", "0", "-q"]
    assert command(*line, "--data", "other/photos") == 0
    _, after = evaluations_of(photo_run)
    assert (before.data, before.images) == (after.data, after.images)
    assert before.images_digest != after.images_digest
    assert command("report", "--run", "r", "-q") == 0
    page = written(photo_run)
    assert not thumbnails(page)
    words = html.unescape(text_of(page))
    assert "No photos: evaluated on 'photos', not on the folder of the fit." in words
    assert "another machine, or with another precision or batch size: whole." in words


def test_a_label_that_changes_makes_other_images(photo_run: Run) -> None:
    (before,) = evaluations_of(photo_run)
    shutil.move("photos/val/red/00.jpg", "photos/val/blue/zz.jpg")
    assert command("evaluate", "whole.safetensors", "--run", "r", "-j", "0", "-q") == 0
    (after,) = evaluations_of(photo_run)
    assert before.images == after.images
    assert before.images_digest != after.images_digest


def test_names_from_right_to_left_do_not_move_what_stands_beside_them() -> None:
    path = _path("val/\u05e2\u05d1/0.jpg")
    assert path == "<bdi>val</bdi>/<wbr><bdi>\u05e2\u05d1</bdi>/<wbr><bdi>0.<wbr>jpg</bdi>"
    assert _path("a/<b>") == "<bdi>a</bdi>/<wbr><bdi>&lt;b&gt;</bdi>"


def test_no_file_outside_the_data_folder_is_shown(photo_run: Run) -> None:
    Image.new("RGB", (30, 30)).save("secret.png")
    content = json.loads(photo_run.evaluation.read_text(encoding="utf-8"))
    content["networks"][0]["answers"]["mistakes"][0]["file"] = "../secret.png"
    photo_run.evaluation.write_text(json.dumps(content), encoding="utf-8")
    assert "is damaged" in refused("report", "--run", "r")
    album = Album(Path("photos"), 10**6)
    outside = ("../secret.png", str(Path("secret.png").resolve()), "val", "none.jpg", "a\0b")
    assert [album.address(name) for name in outside] == [""] * 5
    assert album.address("val/red/00.jpg")


def test_thumbnails_end_where_their_bytes_do(photo_folder: Callable[..., Path]) -> None:
    folder = photo_folder(test=4)
    whole = len(Album(folder, 10**6).address("val/red/00.jpg"))
    album = Album(folder, 2 * whole + 20)
    found = [album.address(f"val/red/0{i}.jpg") for i in (0, 2, 3, 0)]
    assert [bool(address) for address in found] == [True, True, False, False]


def test_a_thumbnail_is_small_upright_and_without_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = tmp_path / "a.jpg"
    Image.new("RGB", (1600, 800), "red").save(path, exif=exif, comment=b"private")
    small = thumbnail(path, PIXELS)
    assert small.size == (80, 160)
    out = io.BytesIO()
    small.save(out, "JPEG")
    assert b"private" not in out.getvalue() and b"Exif" not in out.getvalue()


def test_help_names_the_option() -> None:
    status, out, _ = said("report", "--help")
    assert status == 0 and "--no-photos" in out

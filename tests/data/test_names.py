"""Names of files in little memory: the same as text, as files, and in another process."""

import io
import multiprocessing.reduction
import os
import pickle
import unicodedata
from pathlib import Path

import pytest
import torch
import torch.multiprocessing  # teaches the pickler

from pgnas_cli.data.listing import class_folders, listing_of
from pgnas_cli.data.names import Names

ODD = [
    "a.jpg",
    unicodedata.normalize("NFD", "é/café.jpg"),
    os.fsdecode(b"b/\xe9\xff.png"),
    "",
    "日",
]


def test_names_are_read_as_text_and_as_files() -> None:
    names = Names(ODD)
    text = ["a.jpg", "é/café.jpg", "b/\\xe9\\xff.png", "", "日"]
    assert list(names) == [names[i] for i in range(5)] == text
    assert [names.file(i) for i in range(5)] == ODD
    assert list(names.as_bytes()) == list(map(os.fsencode, ODD))
    some = names.take(torch.tensor([4, 1]))
    assert (list(some), some.index("日"), "a.jpg" in some) == (["日", "é/café.jpg"], 0, False)
    assert names == Names(ODD) != some
    assert names[3:] == Names(ODD[3:])


def test_a_spawned_worker_is_not_sent_the_names() -> None:
    names = Names(f"class-{i % 10}/image-{i:06d}.jpg" for i in range(20_000))
    sent = bytes(multiprocessing.reduction.ForkingPickler.dumps(names))
    assert len(sent) < 2000
    assert list(pickle.load(io.BytesIO(sent))) == list(names)


@pytest.mark.parametrize("inside", ["", "deep/er"])
def test_images_are_in_the_order_of_their_names_as_text(tmp_path: Path, inside: str) -> None:
    files = ["b-c/1.jpg", "b/2.jpg", "b/a/9.jpg", "b/a.jpg", "b/\u0065\u0301.jpg", "b/f.jpg",
             "b/10.jpg", "b/B.jpg", "b/" + os.fsdecode(b"\xe9.jpg"), "b.c/x.jpg"]  # fmt: skip
    for name in files:
        head, _, rest = name.partition("/")
        path = tmp_path / head / inside / rest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    found = listing_of(tmp_path, class_folders(tmp_path))
    there = [p for p in tmp_path.rglob("*") if p.is_file()]

    def parts(path: Path) -> list[str]:
        raw = os.fsencode(path.relative_to(tmp_path)).decode("utf-8", "backslashreplace")
        return unicodedata.normalize("NFC", raw).split("/")

    ordered = sorted(there, key=parts)
    assert [found.path(i) for i in range(len(found))] == ordered
    assert list(found.names) == ["/".join(parts(path)) for path in ordered]
    assert found.labels.tolist() == [["b", "b-c", "b.c"].index(parts(p)[0]) for p in ordered]
    stamps = [[p.stat().st_size, p.stat().st_mtime_ns] for p in ordered]
    assert found.stamps.tolist() == stamps

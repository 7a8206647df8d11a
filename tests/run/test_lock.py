"""One writer for each run: who holds it is named, and nothing of a killed one stays."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pgnas_cli.errors import PgnasError
from pgnas_cli.run import Run, lock, writing
from pgnas_cli.storage import write_text

HOLD = """
import os, sys, time
from pathlib import Path
from pgnas_cli.run import Run, writing
with writing(Run(Path(sys.argv[1]))):
    if os.fork() == 0:  # a worker that outlives its parent
        print("held", flush=True)
    time.sleep(60)
"""


def held_elsewhere(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_who_writes_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    process = held_elsewhere(tmp_path)
    try:
        told = rf"is being written by process {process.pid} \(-c {tmp_path}\); wait for its end"
        with pytest.raises(PgnasError, match=told), writing(Run(tmp_path)):
            raise AssertionError
        process.kill()
        process.wait()
        with writing(Run(tmp_path)):
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert not list(tmp_path.iterdir())
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


def test_a_command_within_a_command_shares_the_lock_and_a_thread_does_not(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with writing(Run(tmp_path)):
                raise AssertionError
        except PgnasError as error:
            refused.append(str(error))

    with writing(Run(tmp_path)):
        with writing(Run(tmp_path)):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"process {os.getpid()} " in refused[0]


def test_only_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for name in (f".posterior.safetensors.{child.pid}.part", f".report.html.{os.getppid()}.part",
                 ".mine.part", "notes.part", ".tmpAbCdEf"):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    with writing(Run(tmp_path)):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        f".report.html.{os.getppid()}.part", ".mine.part", "notes.part", ".tmpAbCdEf", ".lock",
    }  # fmt: skip


def test_a_folder_that_is_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with writing(Run(tmp_path / "a" / "b")):  # not new
        assert not list(tmp_path.iterdir())
    with writing(Run(tmp_path / "a" / "b"), new=True):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert not list(tmp_path.iterdir())
    with writing(Run(tmp_path / "a" / "b"), new=True):
        write_text(tmp_path / "a" / "b" / "x", "")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "x"]
    file = Run(tmp_path / "a" / "b" / "x")
    with pytest.raises(PgnasError, match="is a file; `run` is a folder"), writing(file, new=True):
        raise AssertionError


def test_a_file_system_without_locks_is_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(lock, "note", notes.append)
    monkeypatch.setattr(lock, "fcntl", None)
    with writing(Run(tmp_path)):
        pass
    assert [note.startswith("note: there are no locks where") for note in notes] == [True]

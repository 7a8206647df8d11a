"""Processes that work as one, as torchrun starts them; each has one thread."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def together(size: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """So many processes of Python with these arguments, started; the first one is the writer."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "NO_COLOR": "1",
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each, once all have ended; none outlives five minutes."""
    try:
        told = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *streams) for p, streams in zip(processes, told, strict=True)]

"""Devices by name, worker processes, and a process set up for its CPU."""

import platform
import subprocess
import sys

import pytest
import torch

from pgnas_cli.errors import PgnasError
from pgnas_cli.gates import gates
from pgnas_cli.machine import Machine, find_machine, full_float32
from pgnas_cli.slimming import largest_difference

from .networks import tiny


def test_without_a_gpu_the_machine_is_the_cpu_and_a_worker_for_each_core_up_to_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cores, workers in ((3, 3), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert find_machine() == Machine(torch.device("cpu"), workers)
    monkeypatch.delattr("os.sched_getaffinity")
    for cores, workers in ((3, 3), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert find_machine().workers == workers
    assert find_machine("cpu", 0) == Machine()


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_named(name: str) -> None:
    with pytest.raises(PgnasError, match=f"no device '{name}' here; possible: cpu, or auto"):
        find_machine(name)
    with pytest.raises(PgnasError, match="`workers` -1 is out of range; possible: 0 or more"):
        find_machine("cpu", -1)


def test_comparisons_are_made_in_full_float32_and_the_settings_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    seen = []

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return whole(images)

    whole = tiny()
    everything = torch.ones(gates(whole).count, dtype=torch.bool)
    assert largest_difference(whole, everything, network, [torch.ones(1, 1, 8, 8)]) == 0
    assert seen == [(False, False)]
    with pytest.raises(ValueError), full_float32():
        raise ValueError
    after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.set_float32_matmul_precision("highest")
    assert after == (True, True)


@pytest.mark.parametrize(
    "chosen",
    ["set_float32_matmul_precision('high')", "backends.cuda.matmul.fp32_precision = 'tf32'",
     "backends.fp32_precision = 'tf32'"],
)  # fmt: skip
def test_whichever_names_the_user_sets_they_come_back_and_networks_are_exported(
    chosen: str,
) -> None:
    """PyTorch has two kinds of names, and its exporter fails where they contradict each other."""
    work = (
        f"import torch\nfrom pgnas_cli.machine import full_float32\ntorch.{chosen}\n"
        "b = torch.backends\n"
        "def now(): return [p.fp32_precision for p in (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn)]\n"
        "before = now()\n"
        "with full_float32():\n"
        "    assert now() == ['ieee'] * 3\n"
        "    torch.export.export(torch.nn.Conv2d(1, 1, 1), (torch.zeros(1, 1, 2, 2),))\n"
        "assert now() == before, (before, now())\n"
    )
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands blocks back")
def test_a_process_on_the_cpu_keeps_its_large_blocks_and_flushes_denormal_numbers() -> None:
    """Page faults of ten products of 38 MB, before and after the device was named."""
    work = (
        "import resource, torch\nfrom pgnas_cli.machine import find_machine\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): images * 2\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "torch.set_num_threads(1)\nimages = torch.zeros(10_000_000)\nplain = faults()\n"
        "find_machine('cpu')\nfaults()\n"
        "tuned = min(faults() for _ in range(3))\n"  # a block may still move once
        "print(plain, tuned, float(torch.tensor(1e-39) * 0.5))"
    )
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    plain, tuned, denormal = map(float, done.stdout.split())
    assert denormal == 0
    version = tuple(map(int, platform.libc_ver()[1].split(".")))
    if plain < 5_000 or version < (2, 35):
        pytest.skip("huge pages, or a glibc that does not keep blocks above 32 MB")
    assert 10 * tuned < 5_000

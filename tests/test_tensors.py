"""Tensor files: written whole, and what a damaged or foreign one meets."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pgnas_cli import tensors as storage
from pgnas_cli.errors import PgnasError
from pgnas_cli.tensors import checked, read_tensors, restore_, versioned, write_tensors

KIND = "pgnas.test/1"


def test_tensors_come_back_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    whole = torch.arange(6).view(2, 3)
    written = {"x": whole.T, "y": whole[:1]}  # neither contiguous nor with memory of its own
    write_tensors(tmp_path / "a", KIND, written, {"b": 1, "a": None})
    write_tensors(tmp_path / "b", KIND, written, {"a": None, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found, content = read_tensors(tmp_path / "a", KIND)
    assert all(torch.equal(found[name], tensor) for name, tensor in written.items())
    assert content == {"a": None, "b": 1, **versioned(KIND)}


def test_a_folder_whose_name_is_not_utf8_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"r\xf6") / "x.safetensors"
    path.parent.mkdir()
    write_tensors(path, "pgnas.test/1", {"a": torch.arange(6).reshape(2, 3)}, {"n": 1})
    tensors, content = read_tensors(path, "pgnas.test/1")
    assert torch.equal(tensors["a"], torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert content["n"] == 1


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, KIND, {"x": torch.ones(3)}, {})
    before = path.read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        Path(str(args[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full_disk)
    with pytest.raises(PgnasError, match="No space left on device; what was there before"):
        write_tensors(path, KIND, {"x": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_missing_a_short_and_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(PgnasError, match="no file"):
        read_tensors(path, KIND)
    write_tensors(path, KIND, {"x": torch.ones(300)}, {})
    whole = path.read_bytes()
    halves = [whole[:size] for size in (0, 4, 100, len(whole) // 2, len(whole) - 1)]
    for content in (*halves, b"PK\x03\x04" + bytes(500)):
        path.write_bytes(content)
        with pytest.raises(PgnasError, match="is not a whole safetensors file"):
            read_tensors(path, KIND)
    with pytest.raises(PgnasError, match=r"is not a whole safetensors file|no file"):
        read_tensors(tmp_path, KIND)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(PgnasError, match="was not written by pgnas"):
        read_tensors(path, KIND)


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", '{"schema": 1}', '{"schema": "pgnas.test"}'])
def test_metadata_of_another_shape_is_no_traceback(tmp_path: Path, text: str) -> None:
    header = json.dumps({"__metadata__": {"pgnas": text}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(PgnasError, match="was not written by pgnas"):
        read_tensors(path, KIND)


def test_another_kind_and_a_newer_format_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, "pgnas.test/2", {}, {})
    with pytest.raises(PgnasError, match=r"has format 2 of pgnas\.test, this pgnas .* up to 1"):
        read_tensors(path, KIND)
    with pytest.raises(PgnasError, match=r"holds pgnas\.test, wanted is pgnas\.network"):
        read_tensors(path, "pgnas.network/1")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "missing x; unexpected none"),
        ({"x": torch.ones(2), "z": torch.ones(1)}, "missing none; unexpected z"),
        ({"x": torch.ones(3)}, r"x is torch.float32 \(3,\), wanted torch.float32 \(2,\)"),
        ({"x": torch.ones(2).int()}, r"x is torch.int32 \(2,\), wanted torch.float32 \(2,\)"),
    ],
)
def test_tensors_of_other_names_shapes_or_types_do_not_fit(
    tensors: dict[str, torch.Tensor], message: str
) -> None:
    for like in (torch.zeros(2), ((2,), torch.float32)):
        checked({"x": torch.ones(2)}, {"x": like}, Path("a"))
        with pytest.raises(PgnasError, match=f"'a' does not fit: {message}"):
            checked(tensors, {"x": like}, Path("a"))


def test_a_network_that_reads_the_version_of_its_state_is_restored() -> None:
    """MNASNet refuses a state dict without one."""
    network, twin = (torchvision.models.mnasnet0_5(num_classes=5).eval() for _ in range(2))
    state = dict(network.state_dict())
    with pytest.raises(ValueError, match="version should be set"):
        twin.load_state_dict(state)
    restore_(twin, state)
    images = torch.ones(2, 3, 32, 32)
    assert torch.equal(network(images), twin(images))

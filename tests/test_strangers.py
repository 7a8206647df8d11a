"""Files from strangers: nothing is run, nothing is built that the file does not bear out."""

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pgnas_cli.errors import PgnasError
from pgnas_cli.formats import load, read_onnx
from pgnas_cli.gates import gates
from pgnas_cli.run import Run, read_settings
from pgnas_cli.run.posterior import read_posterior
from pgnas_cli.storage import DEEPEST, MOST_BYTES, file_digest, parse_json
from pgnas_cli.tensors import read_plain_header, read_tensors, write_tensors
from pgnas_cli.training.checkpoint import State, fits, restore_optimizer, save_optimizer
from pgnas_cli.training.fitting import NUMBERS

from .conftest import refused
from .files import rewrite

ROOT = Path(__file__).parent.parent
KINDS = "posterior,candidates,ranking,network,checkpoint,unfinished,weights,run.json,commands"


def test_damaged_files_of_every_kind_are_taken_or_refused_in_one_line(tmp_path: Path) -> None:
    """300 of those that `bench.fuzz` makes: it ends with 1 where there is any other outcome."""
    line = [sys.executable, "-m", "bench.fuzz", "--n", "300", "--kinds", KINDS]
    done = subprocess.run(
        line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = next(row.split() for row in done.stdout.splitlines() if row.startswith("all "))
    assert int(total[1]) == 300
    assert 0 < int(total[2]) < int(total[3])  # some changes are harmless, most are not


@contextlib.contextmanager
def at_most(mebibytes: int) -> Iterator[None]:
    """Fails where the memory of the process peaks higher above what it has now."""

    def peak() -> int:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    yield
    assert peak() - before <= mebibytes


def described(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": tensor([2**40], 0, 2**42)}, "has a shape"),
        ({"a": tensor([2**32, 2**32], 0, 8)}, "has a shape"),
        ({"a": tensor([2**62, 4, 0], 0, 0), "b": tensor([2], 0, 8)}, "has a shape"),
        ({"a": tensor([-2], 0, 8)}, "impossible type or shape"),
        ({"a": tensor([1] * 99 + [2], 0, 8)}, "impossible type or shape"),
        ({"a": tensor([2], 0, 8, "PICKLE")}, "impossible type or shape"),
        ({"a": tensor([2], 8, 0)}, "has a shape"),
        ({"a": tensor([2], 0, 8), "b": tensor([1], 4, 8)}, "overlap"),
        ({"a": tensor([1], 4, 8)}, "overlap"),
        ({"a": tensor([1], 0, 4)}, "the file has 8"),
        ({"a": {**tensor([2], 0, 8), "code": "x"}}, "is not described by"),
        ({"a" * 999: tensor([2], 0, 8)}, "name is too long"),
        ({"\ud800": tensor([2], 0, 8)}, "surrogates not allowed"),
        ({"__metadata__": {"a": 1}}, "metadata are no texts"),
        ([], "no object"),
    ],
)
def test_a_header_that_contradicts_the_files_bytes_is_refused_before_memory_is_set_aside(
    tmp_path: Path, header: Any, message: str
) -> None:
    path = described(tmp_path / "a.safetensors", header, bytes(8))
    with at_most(64), pytest.raises(PgnasError, match=message):
        read_plain_header(path)


def test_the_header_tells_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        f"{dtype}"[6:]: torch.ones(2, 3).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool)
    }
    save_file({**tensors, "none": torch.ones(0, 4), "one": torch.ones(())}, tmp_path / "a")
    header, _ = read_plain_header(tmp_path / "a")
    assert {k: (v.shape, v.dtype) for k, v in tensors.items()} == {
        k: (v.shape, v.dtype) for k, v in header.items() if k not in ("none", "one")
    }
    assert header["none"].shape == (0, 4)
    assert all(found.is_meta for found in header.values())


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), '{"a": 1, "a": 2}', "NaN",
     '{"a": -Infinity}', "1" * 5000, b'"\xff"', "", '"' + "x" * MOST_BYTES + '"'],
)  # fmt: skip
def test_json_beyond_the_bounds_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_json_within_the_bounds_is_what_the_library_reads() -> None:
    deep = "[" * (DEEPEST - 1) + "1.5" + "]" * (DEEPEST - 1)
    assert parse_json(deep) == json.loads(deep)
    assert parse_json('{"a": {"a": ["\\u202e", null, true, 1e3]}}') == {
        "a": {"a": ["\u202e", None, True, 1000.0]}
    }


def set_in(*names: str, to: Any) -> Callable[[dict[str, Any], object], object]:
    """A change of a file's content, of the field at the path `names`."""

    def change(content: dict[str, Any], _: object) -> None:
        *ahead, last = names
        for name in ahead:
            content = content[name]
        content[last] = to

    return change


IMAGES = ("supernet", "preprocessing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in(*IMAGES, "size", to=10**6), "its size cannot be"),
        (set_in(*IMAGES, "size", to=8000), r"names images of 8000 pixels.* would take .* GiB"),
        (set_in(*IMAGES, "channels", to=10**6), "its channels cannot be"),
        (set_in(*IMAGES, "std", to=[0.0]), "its mean and std cannot be"),
        (set_in(*IMAGES, "crop", to=-1.0), "its crop cannot be"),
        (set_in(*IMAGES, "interpolation", to="os"), "its interpolation cannot be"),
        (set_in("supernet", "classes", to=["a"]), "its classes cannot be"),
        (set_in("supernet", "classes", to=["a"] * 200_000), "its classes cannot be"),
        (set_in("supernet", "classes", to=["a" * 5000, "b"]), "its names cannot be"),
        (set_in("supernet", "backbone", to="timm/regnety_2560"), "does not fit|which has"),
        (set_in("supernet", "options", to={"inflation": {"kernels": [1, 3], "width": 16.0}}),
         "more than .* weights"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["posterior", "best"])
def test_what_a_file_says_of_its_network_is_bounded_before_it_is_built(
    fitted: Run, name: str, change: Callable[[dict[str, Any], object], object], message: str
) -> None:
    path = fitted.folder / f"{name}.safetensors"
    rewrite(path, "pgnas.network/1" if name == "best" else "pgnas.posterior/2", change)
    with at_most(256), pytest.raises(PgnasError, match=message):
        load(path) if name == "best" else read_posterior(path)


@pytest.mark.parametrize("backbone", ["timm/regnety_2560", "timm/resnet152"])
def test_a_file_that_says_it_was_cut_names_no_network_of_another_size(
    fitted: Run, backbone: str
) -> None:
    def cut(content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        content["supernet"]["backbone"] = backbone
        tensors["drop_logit"][0] = torch.inf

    rewrite(fitted.posterior, "pgnas.posterior/2", cut)
    with at_most(256), pytest.raises(PgnasError, match=r"more than .* weights|which has"):
        read_posterior(fitted.posterior)


def test_numbers_that_no_fit_writes_are_refused(fitted: Run) -> None:
    original = fitted.posterior.read_bytes()
    for change, message in (
        (set_in("recipe", "batch_size", to=10**12), "in its recipe: `batch_size` 1e"),
        (set_in("objective", "prior", "images", to=0.0), "its numbers cannot be"),
        (set_in("split", "held_out", to=7.5), "its numbers cannot be"),
        (set_in("seed", to=2**64), "its field posterior.seed is not what"),
    ):
        fitted.posterior.write_bytes(original)
        rewrite(fitted.posterior, "pgnas.posterior/2", change)
        with pytest.raises(PgnasError, match=message):
            read_posterior(fitted.posterior)


def test_a_cut_takes_the_memory_of_its_tensors_and_no_more(fitted: Run) -> None:
    """A layer said to be 100,000 x 100,000, for which a tensor of 100,000 vouched before."""

    def wide(content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        cut = next(cut for cut in content["cuts"].values() if cut["kind"] == "mix")
        cut.update(inputs=100_000, outputs=100_000)
        tensors["network.more"] = torch.zeros(100_000)

    path = fitted.folder / "best.safetensors"
    rewrite(path, "pgnas.network/1", wide)
    with at_most(256), pytest.raises(PgnasError, match="does not fit: layer"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights.0.exp_avg", torch.zeros(5)), ("weights.0.exp_avg", torch.zeros(4, 3).double()),
        ("weights.0.more", torch.zeros(4, 3)), ("weights.9.exp_avg", torch.zeros(4, 3)),
        ("weights.x.exp_avg", torch.zeros(4, 3)), ("weights.0", torch.zeros(4, 3)),
        ("weights.0.step", None), ("weights.group.7", 1.0),
    ],
)  # fmt: skip
def test_optimizer_tensors_of_a_checkpoint_are_those_of_their_parameters(
    key: str, value: torch.Tensor | float | None
) -> None:
    layer = nn.Linear(3, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, float] = {}
    save_optimizer(optimizer, "weights", tensors, numbers)
    again = torch.optim.Adam(nn.Linear(3, 4).parameters(), lr=0.1)
    restore_optimizer(again, "weights", State(1, tensors, numbers))
    moments = [slots["exp_avg"] for slots in again.state.values()]
    assert [tuple(m.shape) for m in moments] == [(4, 3), (4,)]
    tensors.pop(key, None)
    if isinstance(value, torch.Tensor):
        tensors[key] = value
    elif value is not None:
        numbers[key] = value
    with pytest.raises(PgnasError, match=re.escape(f"optimizer, {key[:9]}")):
        restore_optimizer(again, "weights", State(1, tensors, numbers))


@pytest.mark.parametrize("name", ["seen", "steps", "price", "best_loss"])
def test_a_checkpoint_without_a_number_that_resuming_reads_is_damaged(
    fitted: Run, name: str
) -> None:
    network, _ = read_posterior(fitted.posterior)
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {"epoch.loss_sum": torch.zeros(()), "epoch.wrong": torch.zeros(())}
    tensors["epoch.before"] = torch.zeros(2, len(gates(network).groups))
    state = State(3, tensors, {**dict.fromkeys(NUMBERS, 1.0), "steps": 5.0})
    assert fits(state, network, NUMBERS, fitted.checkpoint)
    numbers = {key: value for key, value in state.numbers.items() if key != name}
    assert not fits(replace(state, numbers=numbers), network, NUMBERS, fitted.checkpoint)
    assert not fits(replace(state, step=6), network, NUMBERS, fitted.checkpoint)


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    """Opening one waits, reading the other never ends."""
    pipe, endless = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless):
        with pytest.raises(PgnasError, match="it is no regular file"):
            read_tensors(path, "pgnas.test/1")
        with pytest.raises(PgnasError, match="it is no regular file"):
            file_digest(path)
    run = Run(tmp_path)
    os.mkfifo(run.settings)
    with pytest.raises(PgnasError, match="is damaged"):
        read_settings(run)


def test_control_characters_of_a_file_reach_no_message(fitted: Run) -> None:
    evil = "timm/\x1b]0;a\x07\u202e\n" + "x" * 900
    rewrite(fitted.posterior, "pgnas.posterior/2", set_in("supernet", "backbone", to=evil))
    said = refused("sample", "--run", str(fitted.folder))
    assert r"no network '\x1b]0;a\x07\u202e\nxxx" in said
    assert said.isprintable() and len(said) < 710


def test_the_ranking_table_holds_numbers_alone(fitted: Run) -> None:
    """Nothing that a spreadsheet takes for a formula."""
    rows = fitted.ranking_table().read_text(encoding="utf-8").splitlines()[1:]
    assert rows
    assert all(re.fullmatch(r"[0-9.]+", cell) for row in rows for cell in row.split(","))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("elsewhere", "lie in other files"), ("loop", "loops or branches"),
        ("package", "another package"), ("large", "too many values"),
    ],
)  # fmt: skip
def test_an_onnx_file_with_what_export_never_writes_is_refused(
    tmp_path: Path, change: str, message: str
) -> None:
    make, types = onnx.helper, onnx.TensorProto
    value = make.make_tensor_value_info
    shape = make.make_tensor("n", types.INT64, [1], [2**30 if change == "large" else 4])
    one = make.make_node("Identity", ["images"], ["y"])
    inner = make.make_graph([one], "inner", [], [value("y", types.FLOAT, [1, 1, 8, 8])])
    nodes = {
        "loop": make.make_node("If", ["c"], ["m"], then_branch=inner, else_branch=inner),
        "package": make.make_node("Add", ["images", "images"], ["m"], domain="com.other"),
    }
    usual = make.make_node("ConstantOfShape", ["n"], ["m"])
    last = make.make_node("Identity", ["m"], ["logits"])
    tensors = [shape, make.make_tensor("c", types.BOOL, [], [True])]
    if change == "elsewhere":
        tensors[0].ClearField("int64_data")
        tensors[0].data_location = types.EXTERNAL
        entry = tensors[0].external_data.add()
        entry.key, entry.value = "location", "passwd"
    graph = make.make_graph(
        [nodes.get(change, usual), last], "g", [value("images", types.FLOAT, [1, 1, 8, 8])],
        [value("logits", types.FLOAT, ["n"])], tensors,
    )  # fmt: skip
    opsets = [make.make_opsetid("", 18), make.make_opsetid("com.other", 1)]
    path = tmp_path / "a.onnx"
    path.write_bytes(make.make_model(graph, opset_imports=opsets).SerializeToString())
    with at_most(256), pytest.raises(PgnasError, match=message):
        read_onnx(path)


def test_writing_and_reading_agree_on_the_longest_that_is_written(tmp_path: Path) -> None:
    """Gates of a large network in groups of one channel: a header of megabytes."""
    groups = [
        {"layer": "features.denseblock4.conv1", "first": n, "last": n + 1} for n in range(50_000)
    ]
    write_tensors(tmp_path / "a", "pgnas.test/1", {"x": torch.ones(2)}, {"groups": groups})
    assert read_tensors(tmp_path / "a", "pgnas.test/1")[1]["groups"] == groups

"""Damaged and hostile files of every kind, through the functions and commands that read them.

    python -m bench.fuzz [--n 50000] [--seed 0] [--kinds posterior,network]

The product writes one small file of each kind. Each is changed: bits, runs of bytes, its end, the
description of its tensors, its JSON. What reads it may take the file or raise a PgnasError. All
else is counted: a traceback, more than 5 s of the processor or a minute by the clock, more than
1.5 GiB, a process that dies, code that ran, and a file that was taken although its tensors have
other shapes than the network.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgnas_cli.cli import main as command
from pgnas_cli.data import load_data
from pgnas_cli.errors import PgnasError
from pgnas_cli.evaluation import evaluations_of
from pgnas_cli.formats import load, read_network, read_onnx
from pgnas_cli.gates import Prior
from pgnas_cli.ranking import read_ranking
from pgnas_cli.registry import Inflation
from pgnas_cli.registry.build import build_backbone, inflate
from pgnas_cli.registry.weights import load_weights_
from pgnas_cli.report.summary import run_summary
from pgnas_cli.run import Run, commands_of, read_settings, run_to_fit
from pgnas_cli.run.posterior import Posterior, posterior_of, read_posterior
from pgnas_cli.sampling import read_candidates
from pgnas_cli.training.checkpoint import fits, read_checkpoint
from pgnas_cli.training.finetuning import FinetunePlan, finetune_events
from pgnas_cli.training.fitting import NUMBERS, fit_events, supernet_loop
from pgnas_cli.training.loop import Loop

SECONDS, CLOCK = 5.0, 60.0  # of one file: of the processor, which others share, and in all
BYTES = 3 * 2**29  # that one file may add to the memory of the process
AT_ONCE = 200  # files that one process reads


# --- one file of each kind -------------------------------------------------------------------


@dataclass
class Kind:
    """A file of the product, where it lies, and what reads it."""

    path: Path
    read: Callable[[], object]
    share: float = 1.0  # of the files; slow ones are fewer
    network: Callable[[object], nn.Module] | None = None  # what was read -> the network


def made(folder: Path, *, onnx: bool) -> None:
    """A finished run on digits, its exports, an unfinished fit and an unfinished fine-tuning."""
    run, half = Run(folder / "run"), Run(folder / "half")
    fit = ["fit", "--epochs", "1", "--target-params", "60%"]
    best = folder / "best.safetensors"
    lines = [fit, ["sample", "-n", "20"], ["rank", "--top", "3"], ["export", str(best)],
             ["evaluate", str(best)]]  # fmt: skip
    for line in [*lines, *([["export", str(best.with_suffix(".onnx"))]] if onnx else [])]:
        command_of(*line, "--run", str(run.folder))
    data = {"epochs": 2, "target_params": "60%"}
    events = fit_events(*run_to_fit(half.folder, data, resume=False), save_minutes=1e-9)
    for event in events:
        if type(event).__name__ == "EpochRecord":
            break
    events.close()
    tuning = finetune_events(best, folder / "tuned.safetensors", run, epochs=2, save_minutes=1e-9)
    for _ in zip(range(2), tuning, strict=False):
        pass
    tuning.close()
    whole = build_backbone("multibranch-tiny", classes=10, channels=1, size=8).network
    from safetensors.torch import save_file

    save_file(dict(whole.state_dict()), folder / "weights.safetensors")
    inflate("multibranch-tiny", folder / "wide.safetensors", Inflation((1, 3)), classes=10)


def command_of(*line: str) -> int:
    """The exit status of a command, which says nothing here."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            command([*line, *([] if "--json" in line else ["-q"])])
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def kinds_of(folder: Path) -> dict[str, Kind]:
    """Every kind of file in `folder`, as `made` left it."""
    run, half = Run(folder / "run"), Run(folder / "half")
    best, onnx = folder / "best.safetensors", folder / "best.onnx"
    network, posterior = posterior_of(run)
    drawn = read_candidates(run, network, posterior)
    data = load_data("digits")
    fitting, tuned = posterior_of(run)[0], load(best)
    started = read_checkpoint(half.checkpoint, Posterior)[1]
    loop = supernet_loop(
        fitting, data, started.recipe, Prior(1.0, 5e5), seed=0, device=torch.device("cpu"),
        target=started.objective.target,
    )  # fmt: skip
    tuning = Loop(
        tuned, data, started.recipe, seed=0, device=torch.device("cpu"), weight_decay=1e-4
    )
    unfinished = folder / "tuned.unfinished.safetensors"
    plain = build_backbone("multibranch-tiny", classes=10, channels=1, size=8)

    def resumed(at: Loop, path: Path, plan: type, numbers: set[str]) -> nn.Module:
        state, _ = read_checkpoint(path, plan)
        if not fits(state, at.network, numbers, path):
            raise PgnasError("damaged")
        at.restore(state)
        at.advance(*first)
        return at.network

    assert data.fit.pixels is not None
    first = data.fit.pixels[:8], data.fit.labels[:8]
    kinds = {
        "posterior": Kind(run.posterior, lambda: read_posterior(run.posterior), 1, _first),
        "candidates": Kind(run.candidates(), lambda: read_candidates(run, network, posterior)),
        "ranking": Kind(run.ranking(), lambda: read_ranking(run, drawn)),
        "network": Kind(best, lambda: read_network(best), 1, _first),
        "checkpoint": Kind(
            half.checkpoint, lambda: resumed(loop, half.checkpoint, Posterior, NUMBERS), 1, _same
        ),
        "unfinished": Kind(
            unfinished, lambda: resumed(tuning, unfinished, FinetunePlan, {"seen"}), 1, _same
        ),
        "weights": Kind(
            folder / "weights.safetensors",
            lambda: load_weights_(plain.network, folder / "weights.safetensors", plain.heads),
        ),
        "supernet": Kind(
            folder / "wide.safetensors",
            lambda: build_backbone(str(folder / "wide.safetensors"), classes=10, size=8), 0.1,
        ),
        "run.json": Kind(run.settings, lambda: read_settings(run)),
        "commands": Kind(run.commands, lambda: commands_of(run)),
        "evaluation": Kind(run.evaluation, lambda: evaluations_of(run)),
        "metrics": Kind(run.metrics, lambda: run_summary(run), 0.1),
        "onnx": Kind(onnx, lambda: read_onnx(onnx), 0.3),
    }  # fmt: skip
    where = ["--run", str(run.folder)]
    verbs = {
        "rank": (run.candidates(), ["rank", *where]),
        "export": (run.posterior, ["export", str(folder / "x.safetensors"), "--force", *where]),
        "report": (run.evaluation, ["report", *where]),
        "evaluate": (best, ["evaluate", str(best), "--data", "digits"]),
        "resume": (half.checkpoint, ["fit", "--resume", "--run", str(half.folder)]),
        "settings": (half.settings, ["fit", "--resume", "--run", str(half.folder)]),
    }
    for name, (path, line) in verbs.items():
        kinds[f"pgnas {name}"] = Kind(path, lambda line=line: command_of(*line), 0.01)
    return kinds


def _first(read: Any) -> nn.Module:
    network: nn.Module = read[0]
    return network


def _same(read: Any) -> nn.Module:
    network: nn.Module = read
    return network


# --- changes ---------------------------------------------------------------------------------

LONG = "x" * 100_000
EVIL: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 255, 4096, 10**6, 2**31, 2**53, 2**63, 2**64, 10**30,
    10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), "", "a", LONG,
    "\x00", "\x1b]0;x\x07", "\u202egnp", "\ud800", "../../etc/passwd", "/dev/zero", "a\nb",
    "os:system", "pgnas_canary:touch", "timm/hf_hub:a/b", "timm/resnet18", "timm/vit_giant",
    "torchvision/vgg19", "densenet121", "enas-ei", "__import__('os').system('touch canary')",
    [], {}, [[]], [0] * 1000, [1, 2, 3], ["a"] * 2000, {"a": {"b": {"c": 1}}}, "channel",
    "9", "all",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    if path:
        yield path
    items: Any = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed_json(value: Any, rng: random.Random) -> Any:
    """The same JSON value, one to three values of which are others."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(value))
        if not found:
            return copy.deepcopy(rng.choice(EVIL))
        by_depth = defaultdict(list)
        for path in found:
            by_depth[len(path)].append(path)
        *ahead, last = rng.choice(by_depth[rng.choice(list(by_depth))])
        holder = value
        for key in ahead:
            holder = holder[key]
        match rng.randrange(8):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, dict):
                holder[str(rng.choice(EVIL))[:200]] = holder[last]
            case 2:
                other = rng.choice(found)
                with contextlib.suppress(LookupError, TypeError):
                    picked: Any = value
                    for key in other:
                        picked = picked[key]
                    holder[last] = json.loads(json.dumps(picked))
            case 3 if isinstance(holder[last], int | float) and abs(holder[last]) < 2**99:
                holder[last] += rng.choice((-1, 1, 0.5, 100, -(10**9)))
            case 4 if isinstance(holder[last], str):
                holder[last] += rng.choice(("\x1b[2J", "\x00", "x", LONG, "/../", "\ud800"))
            case _:
                holder[last] = copy.deepcopy(rng.choice(EVIL))
    return value


def dumped(value: Any, rng: random.Random) -> str:
    """Its text, sometimes with what a JSON library would not write."""
    text = json.dumps(value)
    match rng.randrange(12):
        case 0:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + "[" * rng.choice((40, 900, 100_000)) + text[at:]
        case 1 if text.startswith("{") and len(text) > 2:
            text = text[:-1] + "," + text[1:]  # each key twice
        case 2:
            depth = rng.choice((30, 40, 900, 50_000))
            text = text.replace(":", ":" + "[" * depth + "]" * depth + ",", 1)
    return text


def bits(content: bytes, rng: random.Random) -> bytes:
    """Some bits turned, most in the first part."""
    some = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at = rng.randrange(rng.choice((8, 200, 4000, len(some)))) % len(some)
        some[at] ^= 1 << rng.randrange(8)
    return bytes(some)


def runs(content: bytes, rng: random.Random) -> bytes:
    """A run of bytes replaced, doubled, or taken out."""
    at, length = rng.randrange(len(content)), rng.choice((1, 8, 64, 4096))
    new = rng.choice((b"", b"\x00" * length, b"\xff" * length, rng.randbytes(length),
                      2 * content[at : at + length]))  # fmt: skip
    return content[:at] + new + content[at + length :]


def cut(content: bytes, rng: random.Random) -> bytes:
    """The beginning of it, or more than all of it, or another file's beginning."""
    end = rng.choice((0, 7, 8, 9, 100, rng.randrange(len(content)), len(content) - 1))
    magic = rng.choice((b"PK\x03\x04", b"\x80\x02cos\nsystem\n", b"", b"\x93NUMPY"))
    return rng.choice((content[:end], content + rng.randbytes(end % 999), magic + content[:end]))


def header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is described otherwise."""
    length = struct.unpack("<Q", content[:8])[0]
    about, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in about if name != "__metadata__"]
    text = ""
    match rng.randrange(6):
        case 0 | 1 if "__metadata__" in about:
            inner = json.loads(about["__metadata__"]["pgnas"])
            about["__metadata__"]["pgnas"] = dumped(changed_json(inner, rng), rng)
        case 2 if len(names) > 1:  # two tensors swapped
            one, other = rng.sample(names, 2)
            about[one], about[other] = about[other], about[one]
        case 3:
            tensor = about[rng.choice(names)]
            shape = tensor["shape"]
            tensor.update(rng.choice((
                {"shape": shape[::-1]}, {"shape": [1, *shape]}, {"shape": [*shape, 1] * 9},
                {"shape": [2**62, 4, 0]}, {"shape": [2**32, 2**32]}, {"shape": [-1]},
                {"dtype": rng.choice(("F64", "I64", "BOOL", "U8", "F8_E4M3", "C64", "F4", "x"))},
                {"data_offsets": [0, 2**63]}, {"data_offsets": tensor["data_offsets"][::-1]},
            )))  # fmt: skip
        case 4:
            new = rng.choice(names)
            about[new + rng.choice(("x", "." * 9000, "\x1b", "\ud800"))] = about.pop(new)
        case _:
            text = dumped(changed_json(about, rng), rng)
    made = (text or json.dumps(about)).encode()
    size = len(made) if rng.randrange(8) else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return struct.pack("<Q", size) + made + rest


def resized(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file that is whole, one of its tensors of another size, type or value."""
    from safetensors.torch import load as tensors_of
    from safetensors.torch import save

    length = struct.unpack("<Q", content[:8])[0]
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__")
    tensors = tensors_of(content)
    name = rng.choice(list(tensors))
    old = tensors[name]
    match rng.randrange(6):
        case 0:
            tensors[name] = torch.zeros([n + 1 for n in old.shape] or [2], dtype=old.dtype)
        case 1:
            tensors[name] = old.flatten()[: max(1, old.numel() // 2)].clone()
        case 2:
            tensors[name] = old.double() if old.is_floating_point() else old.float()
        case 3:
            level = rng.choice((float("nan"), float("inf"), -1.0, 1e30, 0.0))
            tensors[name] = torch.full_like(old.double(), level).to(old.dtype)
        case 4:
            tensors.pop(name)
        case _:
            tensors[name] = torch.zeros(rng.choice(([], [0], [1], [300_000])), dtype=old.dtype)
    return save(tensors, metadata)


def lines(content: bytes, rng: random.Random) -> bytes:
    """A file of one JSON value, or of one in each line, with other values."""
    text = content.decode()
    try:
        return dumped(changed_json(json.loads(text), rng), rng).encode("utf-8", "surrogatepass")
    except ValueError:
        rows = text.splitlines()
        at = rng.randrange(len(rows))
        rows[at] = dumped(changed_json(json.loads(rows[at]), rng), rng)
        return "\n".join(rows).encode("utf-8", "surrogatepass")


def graph(content: bytes, rng: random.Random) -> bytes:
    """An ONNX file with another description, step or tensor."""
    import onnx

    model = onnx.load_from_string(content)
    own = next(p for p in model.metadata_props if p.key == "pgnas")
    node, tensor = rng.choice(model.graph.node), rng.choice(model.graph.initializer)
    match rng.randrange(6):
        case 0 | 1:
            text = dumped(changed_json(json.loads(own.value), rng), rng)
            own.value = text.encode("utf-8", "replace").decode()
        case 2:
            node.op_type = rng.choice(("Loop", "If", "Expand", "Tile", "Add", "Reshape", "x"))
        case 3:
            tensor.dims.append(rng.choice((0, 1, 2**40, -1)))
        case 4:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", rng.choice(("/etc/passwd", "../run/run.json"))
        case _:
            node.domain = rng.choice(("com.microsoft", "x", "ai.onnx.ml"))
    return bytes(model.SerializeToString())


def changed(kind: str, path: Path, content: bytes, rng: random.Random) -> bytes:
    """The content of a file of this kind, damaged."""
    if path.suffix == ".onnx":
        own = [graph, graph]
    elif path.suffix == ".safetensors":
        own = [header, header, header, resized, resized]
    else:
        own = [lines, lines, lines]
    return rng.choice([*own, bits, runs, cut])(content, rng)


# --- reading ---------------------------------------------------------------------------------


class Hang(BaseException):
    """A file took too long."""


def _ring(number: int, frame: object) -> None:
    raise Hang


def memory_peak(reset: bool = False) -> int:
    """Bytes that this process had at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def verdict(kind: Kind, ran: list[str]) -> tuple[str, str]:
    """What reading the file that lies there comes to, and what is known of a fault."""
    before = memory_peak(reset=True)
    ran.clear()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, CLOCK)
    try:
        found = kind.read()
        outcome = ("refused" if found == 1 and type(found) is int else "taken", "")
        if outcome[0] == "taken" and kind.network is not None:
            outcome = shapes_of(kind.path, kind.network(found)) or outcome
    except PgnasError as error:
        said = str(error)
        acts = any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) < 0x202F for c in said)
        outcome = ("message", said) if acts or len(said) > 999 else ("refused", "")
    except Hang:
        outcome = ("hang", "")
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "pgnas_cli" in f.filename]
        at = own[-1] if own else last
        outcome = (
            "traceback",
            f"{type(error).__name__}: {str(error)[:200]} at {at.filename}:{at.lineno}",
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if memory_peak() - before > BYTES:
        outcome = ("memory", f"{(memory_peak() - before) / 2**20:.0f} MiB")
    return ("code", ran[0]) if ran else outcome


def shapes_of(path: Path, network: nn.Module) -> tuple[str, str] | None:
    """The fault of a file that was taken, a tensor of which has another shape in the network."""
    content = path.read_bytes()
    about = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    for name, tensor in network.state_dict().items():
        told = about.get(f"network.{name}") or about.get("drop_logit") or {}
        if told.get("shape") != list(tensor.shape):
            return "other shapes", f"{name} {told.get('shape')} {tuple(tensor.shape)}"
    return None


def watch(ran: list[str]) -> None:
    """Note what would be code of a file at work."""
    names = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class",
             "socket.connect")  # fmt: skip

    def hook(event: str, given: tuple[Any, ...]) -> None:
        canary = event == "import" and "canary" in str(given[0])
        if canary or event in names:
            ran.append(f"{event} {str(given)[:100]}")

    sys.addaudithook(hook)


def read_some(
    kinds: dict[str, Kind],
    whole: dict[str, bytes],
    plan: list[tuple[int, str]],
    seed: int,
    out: int,
) -> None:
    """Read the files of `plan` in this process; a line for each goes to `out`."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _ring)
    signal.signal(signal.SIGPROF, _ring)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + 8 * BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    ran: list[str] = []
    watch(ran)
    for number, name in plan:
        kind, rng = kinds[name], random.Random(f"{seed} {number}")
        os.write(out, f"{json.dumps([number, name])}\n".encode())
        kind.path.write_bytes(changed(name, kind.path, whole[name], rng))
        outcome, about = verdict(kind, ran)
        kind.path.write_bytes(whole[name])
        os.write(out, f"{json.dumps([number, name, outcome, about[:300]])}\n".encode())


def in_a_process(work: Callable[[int], None]) -> list[list[Any]]:
    """The lines that `work` writes in a process of its own; it may die."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(ours)
            work(theirs)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(theirs)
    with os.fdopen(ours) as handle:
        rows = [json.loads(line) for line in handle]
    os.waitpid(child, 0)
    return rows


def fuzz(
    n: int,
    seed: int,
    folder: Path,
    only: set[str] | None,
    minutes: float,
    numbers: set[int] | None = None,
) -> dict[str, Counter[str]]:
    """Outcomes by kind of `n` files, or as many as `minutes` allow; faults are printed."""
    torch.set_num_threads(1)
    made(folder, onnx=only is None or "onnx" in only)
    kept = folder.with_name(f"{folder.name}-whole")
    shutil.copytree(folder, kept)
    kinds = {k: v for k, v in kinds_of(folder).items() if only is None or k in only}
    whole = {name: kind.path.read_bytes() for name, kind in kinds.items()}
    rng = random.Random(seed)
    shares = [kind.share for kind in kinds.values()]
    plan = list(enumerate(rng.choices(list(kinds), shares, k=n)))
    plan = [one for one in plan if numbers is None or one[0] in numbers]
    counts: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    began = time.monotonic()
    while plan and time.monotonic() - began < 60 * minutes:
        some = plan[:AT_ONCE]
        rows = in_a_process(lambda out, some=some: read_some(kinds, whole, some, seed, out))
        done = [row for row in rows if len(row) > 2]
        for number, name, outcome, about in done:
            counts[name][outcome] += 1
            if outcome not in ("taken", "refused"):
                print(f"{number} {name}: {outcome} {about}", flush=True)
        plan = plan[len(done) :]
        if len(done) < len(some):
            number, name = some[len(done)]
            counts[name]["died"] += 1
            print(f"{number} {name}: died", flush=True)
            plan = plan[1:]
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    return counts


FAULTS = ("traceback", "hang", "memory", "died", "code", "other shapes", "message")


def main() -> None:
    """Print outcomes by kind; the exit status is 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--numbers", type=int, nargs="*", help="of the files; default: all")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        only = set(given.kinds.split(",")) if given.kinds else None
        numbers = None if given.numbers is None else set(given.numbers)
        counts = fuzz(given.n, given.seed, Path(folder) / "files", only, given.minutes, numbers)
    columns = ("files", "taken", "refused", *FAULTS)
    print(f"{'':16}" + "".join(f"{column:>13}" for column in columns))
    for name, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        numbers = [sum(found.values()), *(found[column] for column in columns[1:])]
        print(f"{name:16}" + "".join(f"{number:13}" for number in numbers))
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(any(found[fault] for found in counts.values() for fault in FAULTS))


if __name__ == "__main__":
    main()

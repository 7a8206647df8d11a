"""The paper's tables in direction, on small kin of its networks.

    python -m bench.paper TABLE [--seeds 0 1 2 3 4] [--nets m mi e ei inflated] [--cifar FOLDER]
    python -m bench.paper TABLE --print

TABLE: 2 (constant l2), 3 (whole, random, random fine-tuned, posterior), 4 (l2), 5 (temperature,
fine-tuning), 6 (number of candidates), 7 (what is dropped), 9 (base, inflated, posterior of the
inflated), regimes (images x epochs). Everything is trained alike: 500 CIFAR images of 16 pixels,
100 epochs, 1,000 images held out for ranking, SGD with the paper's objective, N = 10 x images, as
the paper counts it. Errors are on CIFAR's 10,000 test images.

A cell (network, side, seed, ...) appends one JSON line to docs/data/paper.jsonl, with the whole
recipe and a digest of the code; which test images it gets wrong goes to docs/data/paper/ as packed
bits. A cell that is there is not run again, and a table refuses cells of different code or recipe.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pgnas_backbones.enas import Enas
from pgnas_backbones.multibranch import MultiBranch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from bench import CPU, about, one_checkout, ranked
from bench.convergence import PIXELS, SEEN, images
from bench.figures import DATA, Row, append, interval, prose, read, table
from pgnas_cli import Target, count, drop_probabilities, fit_network, slim
from pgnas_cli.data import ImageData, Part, evaluation_images, find_data
from pgnas_cli.gates import gates
from pgnas_cli.ranking.race import Race
from pgnas_cli.registry import Backbone, Inflation, Recipe
from pgnas_cli.registry.inflate import inflate_
from pgnas_cli.sampling import draw_candidates
from pgnas_cli.sampling.baselines import shifted_to_size
from pgnas_cli.seeds import derived_seed, generator, seeded_globals
from pgnas_cli.sizes import parameter_count, whole_macs
from pgnas_cli.storage import to_json
from pgnas_cli.training import gated, prior_of, score
from pgnas_cli.training.loop import Loop, train

CANDIDATES = 60
HELD_OUT = 1000
SHAPE = (3, PIXELS, PIXELS)
INFLATED = Inflation((1, 3, 5, 9), width=2.0)
L2 = 5.0  # at N = 20,000 a weight decay of 5e-4


def multibranch(width: float, *, shake: bool = False) -> nn.Module:
    """Three blocks of two branches, of `width` to 4 x `width` channels."""
    widths = tuple(round(width * k) for k in (1, 2, 4))
    return MultiBranch(widths, 1, max(1, round(width)), SHAPE, 10, shake)


def inflated(width: float) -> nn.Module:
    network = multibranch(width)
    inflate_(network, SHAPE, INFLATED, copy=False)
    return network


NETS: dict[str, Callable[[float], nn.Module]] = {  # of a width, 1 for its own
    "m": lambda w: multibranch(16 * w),
    "mi": lambda w: multibranch(16 * w * 10 / 6),
    "e": lambda w: Enas(round(6 * w), SHAPE, 10, layers=3),
    "ei": lambda w: Enas(round(12 * w), SHAPE, 10, layers=3),
    "inflated": lambda w: inflated(16 * w),
}


@dataclass(frozen=True)
class Cell:
    """One network trained one way."""

    net: str
    side: str  # whole, posterior, random: one p for all gates, at the posterior's mean size
    seed: int
    images: int = 500
    epochs: int = 100
    l2: float = L2
    temperature: float = 0.2
    constant: bool = False  # l2 without its factor 1 - p
    target: tuple[str, float] | None = None  # kind and share of the whole network's size
    width: float = 1.0  # of the network's own
    finetuned: bool = False  # the best candidate also trained on, for a quarter of the epochs
    many: int = 0  # candidates of an exhaustive pass

    @property
    def name(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs, batch_size=64, lr=0.05, cutout=4, gates="all", groups="layer",
            initial_drop=0.1, l2=self.l2, kl_images=10 * self.images, temperature=self.temperature,
        )  # fmt: skip


# --- running ---------------------------------------------------------------------------------


@functools.cache
def all_images(cifar: Path, number: int, seed: int) -> ImageData:
    return images(cifar, number + HELD_OUT, HELD_OUT, seed)


def leading(part: Part, number: int) -> Part:
    assert part.pixels is not None
    return Part(part.labels[:number], part.keys[:number], part.pixels[:number])


@functools.cache
def test_images(cifar: Path) -> Part:
    source = find_data(str(cifar))
    assert source.test is not None
    pixels = torch.cat(list(evaluation_images(source.test, SEEN)))
    return Part(source.test.labels, source.test.keys, pixels)


def outcome(network: nn.Module, data: ImageData) -> tuple[Row, np.ndarray]:
    """Errors of a network without gates, and which test images it gets wrong."""
    assert data.test is not None
    held_out = score(network, data.held_out, data.preprocessing, machine=CPU)
    test = score(network, data.test, data.preprocessing, machine=CPU)
    wrong = np.zeros(len(data.test), dtype=bool)
    wrong[list(test.wrong)] = True
    return {"held_out": held_out.error, "test": test.error}, wrong


def finetuned(network: nn.Module, data: ImageData, cell: Cell) -> nn.Module:
    """The network trained on, at a tenth of the rate."""
    recipe = dataclasses.replace(
        cell.recipe, epochs=max(1, cell.epochs // 4), lr=cell.recipe.lr / 10
    )
    loop = Loop(
        network, data, recipe, seed=derived_seed(cell.seed, "finetuning"), device=CPU.device,
        weight_decay=prior_of(recipe, len(data.fit)).weight_decay(),
    )  # fmt: skip
    with closing(train(loop, workers=0, save=lambda _: None, save_seconds=1e9)) as passes:
        for _ in passes:
            pass
    return network.eval()


def run(cell: Cell, posterior: Row | None, cifar: Path) -> tuple[Row, dict[str, np.ndarray]]:
    """Train a cell and evaluate it; `posterior` is the row whose mean size "random" has."""
    began = time.perf_counter()
    data = all_images(cifar, cell.images, cell.seed)
    data = dataclasses.replace(data, test=test_images(cifar))
    with seeded_globals(derived_seed(cell.seed, "initial weights")):
        network = NETS[cell.net](cell.width)
    recipe = cell.recipe
    network = gated(Backbone(network, SHAPE, recipe), recipe)
    whole = float(parameter_count(network)), float(whole_macs(network))
    fixed = 0.0 if cell.side == "whole" else None
    noise = torch.rand(64, gates(network).count, generator=generator(cell.seed, "size"))
    if cell.side == "random":
        assert posterior is not None
        start = torch.full((len(gates(network).groups),), 0.5)
        size = posterior["mean_params"] * whole[0]
        fixed = float(shifted_to_size(network, start, size, noise)[0])
    history = []
    target = Target(*cell.target) if cell.target else None  # type: ignore[arg-type]
    prior = prior_of(recipe, len(data.fit), constant=cell.constant)
    few = dataclasses.replace(data, held_out=leading(data.held_out, 100))  # for the epoch's line
    for r in fit_network(
        network, few, recipe, prior, seed=cell.seed, machine=CPU, fixed_drop=fixed, target=target
    ):
        history.append([round(v, 4) for v in (r.loss, r.expected_share, r.drift, r.hard_error)])
    network.eval()
    p = drop_probabilities(network)
    p = torch.zeros_like(p) if cell.side == "whole" else p
    keep = draw_candidates(p, network, 1 if cell.side == "whole" else CANDIDATES, cell.seed)
    race = ranked(network, keep, data, 1)
    best = int(race.best()[0])
    found, wrong = {}, {}
    pruned = slim(network, keep[best])
    found["best"], wrong["best"] = outcome(pruned, data)
    if cell.finetuned:
        pruned = finetuned(pruned, data, cell)
        found["finetuned"], wrong["finetuned"] = outcome(pruned, data)
    sizes = count(network, keep)
    row: Row = {
        **dataclasses.asdict(cell), "params": float(sizes.params[best]) / whole[0],
        "macs": float(sizes.macs[best]) / whole[1], "recipe": to_json(recipe),
        "history": history[:1] + history[-1:],
        "mean_params": float(sizes.params.double().mean()) / whole[0],
        "mean_macs": float(sizes.macs.double().mean()) / whole[1],
        "mean_held_out": float(race.errors[race.pilots].double().mean()) / len(race.order),
        "p": [round(float(v), 5) for v in p],
        "dropped_channels": 1 - float(keep[best].double().mean()),
        "weight_square": sum(float(w.square().sum()) for w in convolution_weights(network)),
        "dropped_operations": closed_layers(network, keep[best]), "whole": whole, "found": found,
    }  # fmt: skip
    if cell.many:
        row["best_of"] = best_of(network, p, data, cell)
    return {**row, "seconds": round(time.perf_counter() - began)}, wrong


def convolution_weights(network: nn.Module) -> list[Tensor]:
    return [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]


def closed_layers(network: nn.Module, keep: Tensor) -> float:
    """Share of the gated layers that keep no input."""
    spans = gates(network).spans.values()
    return sum(not bool(keep[a:b].any()) for a, b in spans) / len(spans)


def best_of(network: nn.Module, p: Tensor, data: ImageData, cell: Cell) -> list[list[float]]:
    """[n, held-out, test]: errors of the best of n candidates, mean over subsets of one pass."""
    assert data.test is not None
    keep = draw_candidates(p, network, cell.many, derived_seed(cell.seed, "many"))
    race: Race = ranked(network, keep, data)
    errors = race.errors.double() / len(race.order)
    tested: dict[int, float] = {}
    found = []
    for n in (1, 5, 50, 500, 1500):
        if n > cell.many:
            break
        held, test = [], []
        for repeat in range(1 if n == cell.many else 20):
            subset = torch.randperm(cell.many, generator=generator(cell.seed, "subset", n, repeat))
            chosen = min(subset[:n].tolist(), key=lambda i: (float(errors[i]), int(race.place[i])))
            if chosen not in tested:
                pruned = slim(network, keep[chosen])
                tested[chosen] = score(pruned, data.test, data.preprocessing, machine=CPU).error
            held.append(float(errors[chosen]))
            test.append(tested[chosen])
        found.append([n, sum(held) / len(held), sum(test) / len(test)])
    return found


# --- tables ----------------------------------------------------------------------------------

SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Side:
    """A row of a table: cells that differ in their seeds, and which of their outcomes it shows."""

    text: str
    cell: Cell  # of seed 0
    found: str = "best"


def groups_of(table: str) -> list[list[Side]]:
    """The rows of a table, in groups whose first row the others are compared with."""
    m = Cell("m", "posterior", 0, finetuned=True)
    if table == "2":
        constant = dataclasses.replace(m, constant=True)
        aimed = dataclasses.replace(m, target=("params", 0.6))
        return [
            [Side("(1-p) in the l2 term", m), Side("constant l2 term", constant)],
            [Side("(1-p) in the l2 term, at 60 %", aimed),
             Side("constant l2 term, at 60 %", dataclasses.replace(aimed, constant=True))],
        ]  # fmt: skip
    if table == "3":
        found = []
        for net in ("m", "mi", "e", "ei"):
            posterior = dataclasses.replace(m, net=net)
            random = dataclasses.replace(posterior, side="random")
            whole = dataclasses.replace(posterior, side="whole", finetuned=False)
            found.append([
                Side(f"{net}: posterior", posterior), Side(f"{net}: random", random),
                Side(f"{net}: random, fine-tuned", random, "finetuned"),
                Side(f"{net}: whole", whole),
            ])  # fmt: skip
        return found
    if table == "4":
        shares = (0.1, 0.3, 1, 3, 10)
        return [[Side(f"l2 = {L2 * k:g}", dataclasses.replace(m, l2=L2 * k)) for k in shares]]
    if table == "5":
        warm = dataclasses.replace(m, temperature=2 / 3)
        return [[Side("temperature 1/5", m), Side("temperature 2/3", warm),
                 Side("temperature 1/5, fine-tuned", m, "finetuned")]]  # fmt: skip
    if table == "6":
        return [[Side("best of 60", dataclasses.replace(m, many=2000))]]
    if table == "7":
        nets = ("m", "mi", "e", "ei")
        return [[Side(net, dataclasses.replace(m, net=net))] for net in nets]
    if table == "9":
        whole = Cell("inflated", "whole", 0)
        share = parameter_count(multibranch(16)) / parameter_count(inflated(16))
        slimmed = dataclasses.replace(whole, side="posterior", target=("params", round(share, 4)))
        return [[Side("posterior of the inflated, at the base's size", slimmed),
                 Side("base", Cell("m", "whole", 0)), Side("inflated", whole)]]  # fmt: skip
    found = []
    for number, epochs in ((500, 40), (500, 160), (2000, 40), (2000, 160)):
        at = f"{number} images x {epochs} epochs: "
        cell = Cell("m", "whole", 0, images=number, epochs=epochs)
        half = dataclasses.replace(cell, side="posterior", target=("params", 0.5))
        found.append([
            Side(f"{at}whole", cell),
            Side(f"{at}narrower network", dataclasses.replace(cell, width=0.7071)),
            Side(f"{at}posterior, 50 % of the parameters", half),
            Side(f"{at}posterior, 50 % of the MACs",
                 dataclasses.replace(half, target=("macs", 0.5))),
        ])  # fmt: skip
    return found


class Store:
    """Rows by the name of their cell, and the test images that each gets wrong."""

    def __init__(self, path: Path) -> None:
        self.path, self.bits = path, path.with_suffix("")
        self.rows = {row["name"]: row for row in read(path)}

    def add(self, cell: Cell, row: Row, wrong: dict[str, np.ndarray]) -> None:
        self.bits.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: np.packbits(v) for k, v in wrong.items()}, self.bits / f"{cell.name}.safetensors"
        )
        row = {"name": cell.name, **row}
        append(self.path, row)
        self.rows[cell.name] = row

    def wrong(self, cell: Cell, found: str) -> np.ndarray:
        bits = load_file(self.bits / f"{cell.name}.safetensors")[found]
        return np.unpackbits(bits).astype(float)


def seeded(cell: Cell, seed: int) -> Cell:
    return dataclasses.replace(cell, seed=seed)


def verdict(low: float, high: float) -> str:
    """What an interval of a difference of errors says."""
    return "worse" if low > 0 else "better" if high < 0 else "cannot be told"


def figures(name: str, store: Store, seeds: Iterable[int] = SEEDS) -> str:
    """Sentence and table; each group of rows has the seeds of which all its cells are there."""
    columns: list[list[str]] = []
    used: list[Row] = []
    after: list[list[str]] = []
    for group in groups_of(name):
        whole = [s for s in seeds if all(seeded(o.cell, s).name in store.rows for o in group)]
        first: np.ndarray | None = None
        for side in group if whole else []:
            cells = [seeded(side.cell, seed) for seed in whole]
            mine = [store.rows[cell.name] for cell in cells]
            wrong = np.stack([store.wrong(cell, side.found) for cell in cells])
            less = ""
            if first is None:
                first = wrong
            else:
                gap = interval(wrong - first)
                less = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * g for g in gap))
                less += f": {verdict(*gap[1:])}"
            held = float(np.mean([row["found"][side.found]["held_out"] for row in mine]))
            loss = float(np.mean([row["history"][-1][0] for row in mine]))
            columns.append([
                side.text, ", ".join(map(str, whole)), *sizes(mine, group[0].cell, store),
                f"{loss:.2f}", f"{100 * held:.1f}",
                "{:.2f} ({:.2f} to {:.2f})".format(*(100 * v for v in interval(wrong))), less,
            ])  # fmt: skip
            used += mine
            if name == "6":
                best = np.mean([row["best_of"] for row in mine], axis=0)
                after += [[f"{n:.0f}", f"{100 * h:.2f}", f"{100 * e:.2f}"] for n, h, e in best]
            if name == "4":
                pull = [
                    side.cell.l2 * row["weight_square"] for row in mine if "weight_square" in row
                ]
                after.append([side.text, f"{np.mean(pull):.0f}"])
            if name == "7":
                dropped = [share(mine, f"dropped_{k}") for k in ("channels", "operations")]
                after.append([side.text, *dropped])
    if not used:
        return f"No seed has all cells of table {name} yet."
    for key in ("code", "torch", "timm"):
        if len({row[key] for row in used}) > 1:
            raise SystemExit(f"the cells of table {name} were made with different {key}")
    head = ["", "seeds", "params %", "MACs %", "train loss", "held-out %", "test % (95 %)",
            "less the first"]  # fmt: skip
    parts = [prose(f"{used[0]['on']}, timm {used[0]['timm']}."), table(head, columns)]
    if name == "4":
        parts.append(table(["", "l2 x squared weights"], after))
    if name == "6":
        parts.append(table(["candidates", "held-out %", "test %"], after))
    if name == "7":
        parts.append(table(["", "dropped channels %", "dropped operations %"], after))
    return "\n\n".join(parts)


def sizes(rows: list[Row], first: Cell, store: Store) -> list[str]:
    """Mean parameters and MACs, % of those of the whole network of the group's first row."""
    wholes = [store.rows[seeded(first, row["seed"]).name]["whole"] for row in rows]
    found = []
    for at, key in enumerate(("params", "macs")):
        own = [row[key] * row["whole"][at] / whole[at]
               for row, whole in zip(rows, wholes, strict=True)]  # fmt: skip
        found.append(f"{100 * float(np.mean(own)):.1f}")
    return found


def share(rows: list[Row], key: str) -> str:
    return f"{100 * float(np.mean([row[key] for row in rows])):.1f}"


TABLES = ("2", "3", "4", "5", "6", "7", "9", "regimes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--nets", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar"))
    parser.add_argument("--results", type=Path, default=DATA / "paper.jsonl")
    parser.add_argument("--print", action="store_true")
    options = parser.parse_args()
    store = Store(options.results)
    if options.print:
        print(figures(options.table, store, options.seeds))
        return
    one_checkout()
    taken_with = about()
    for seed in options.seeds:
        for side in itertools.chain.from_iterable(groups_of(options.table)):
            cell = seeded(side.cell, seed)
            if cell.name in store.rows or cell.net not in options.nets:
                continue
            of = dataclasses.replace(cell, side="posterior")
            row, wrong = run(cell, store.rows.get(of.name), options.cifar)
            store.add(cell, {**row, **taken_with}, wrong)
            print(options.table, side.text, seed, f"{100 * row['params']:.0f} %",
                  row["history"][-1], row["found"], row["seconds"], flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

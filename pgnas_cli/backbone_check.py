"""What every backbone must do, checked on one: `pgnas backbones NAME --check`.

Each check says what it found; the first that fails ends the list, since those behind it need it.
"""

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .data import DataName, ImageData, Part, Preprocessing
from .errors import PgnasError
from .formats import NetworkInfo, checked_slim, size_fields, write_network
from .gates import gates, layer_gates, relaxed, segments
from .registry import Backbone, Recipe, preset
from .registry.build import build_backbone
from .run import FitSettings, check_recipe
from .run.posterior import SupernetSpec
from .sampling import draw_candidates
from .seeds import derived_seed, generator, seeded_globals
from .sizes import count, parameter_count
from .storage import from_json, to_json
from .training import fit_network, gated, prior_of

CLASSES = 3
BATCH = 12
EPOCHS, PER_EPOCH = 4, 5  # 20 steps
STEPS = 40  # in one of which each weight must get a gradient
DRAWN = 3  # candidates that are cut


@dataclass(frozen=True)
class Check:
    """One requirement."""

    what: str
    passed: bool
    found: str


class _Failed(Exception):
    pass


REQUIREMENTS = (
    "builds, with finite logits of one row per image",
    "has recipes that a fit can follow",
    "has gates, whose groups cover the inputs of their layers",
    "gives every weight and drop probability a gradient",
    "learns three colours in 20 steps",
    "is cut to candidates with the same logits, counted right",
    "is exported, and read again by another process",
)


def checks(name: str, *, size: int | None = None) -> Iterator[Check]:
    """Build the backbone `name` and check it, one requirement after the other."""
    steps = _steps(name, size)
    for what in REQUIREMENTS:
        try:
            yield Check(what, True, next(steps))
        except (_Failed, PgnasError) as error:
            yield Check(what, False, str(error))
            return
        except Exception as error:  # a stranger's code may fail in any way
            yield Check(what, False, f"{type(error).__name__}: {error}")
            return


def _steps(name: str, size: int | None) -> Iterator[str]:
    """Fulfil `REQUIREMENTS` in their order; yields what was found."""
    backbone = build_backbone(name, classes=CLASSES, size=size)
    yield _finite(backbone)
    yield _recipes(backbone)
    network = gated(backbone, backbone.recipe)
    yield _covered(network)
    yield _learns(backbone, network)
    data = _colours(backbone)
    yield _trains(backbone, network, data)
    network.eval()
    p = torch.full((len(gates(network).groups),), 0.4)
    keep = draw_candidates(p, network, DRAWN, 0)
    assert data.held_out.pixels is not None
    batches = [data.preprocessing.normalised(data.held_out.pixels)]
    yield _slims(network, keep, batches)
    yield _travels(backbone, network, keep[0], data, batches)


def _finite(backbone: Backbone) -> str:
    shape = backbone.input_shape
    with torch.no_grad():
        logits = backbone.network.eval()(torch.randn(2, *shape, generator=generator(0, "check")))
    _demand(isinstance(logits, Tensor) and logits.shape == (2, CLASSES), "other outputs")
    _demand(bool(torch.isfinite(logits).all()), "logits that are not finite")
    return f"{'x'.join(map(str, shape))}, {parameter_count(backbone.network)} parameters"


def _recipes(backbone: Backbone) -> str:
    for which in ("", *backbone.presets):
        fields = preset(backbone, which) if which else {}
        known = {f.name for f in dataclasses.fields(Recipe)}
        _demand(set(fields) <= known, f"preset {which} has unknown fields {set(fields) - known}")
        recipe = dataclasses.replace(backbone.recipe, **fields)
        from_json(Recipe, to_json(recipe), Path(which or "recipe"))
        check_recipe(recipe, FitSettings())
    return ", ".join(("its own", *backbone.presets))


def _covered(network: nn.Module) -> str:
    bank = gates(network)
    modules = dict(network.named_modules())
    listed = {row.layer: row for row in layer_gates(network)}
    for layer, (first, last) in bank.spans.items():
        _demand(layer in listed, f"layer {layer} has gates and is not listed")
        if isinstance(modules[layer], nn.Conv2d | nn.Linear):
            wide = listed[layer].inputs
            _demand(last - first == wide, f"{layer} has {last - first} gates, {wide} inputs")
            _demand(sum(segments(bank.graph, layer)) == wide, f"segments of {layer} do not add up")
    return f"{bank.count} gates in {len(bank.groups)} groups on {len(bank.spans)} layers"


def _learns(backbone: Backbone, network: nn.Module) -> str:
    own = {k: p for k, p in network.named_parameters() if not k.startswith("gates.")}
    images = torch.randn(4, *backbone.input_shape, generator=generator(0, "check"))
    network.train()
    draws = generator(0, "check gates")
    without: list[str] = []
    for step in range(STEPS):  # stochastic depth skips a layer in some
        with (
            relaxed(network, batch=4, generator=draws, temperature=backbone.recipe.temperature),
            seeded_globals(derived_seed(0, "check forward", step)),
        ):
            outputs = network(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((o.square().sum() for o in outputs), start=torch.zeros(())).backward()
        without = [key for key, p in own.items() if p.requires_grad and p.grad is None]
        if not without:
            break
    _demand(not without, f"{', '.join(without[:1])} has no gradient in {STEPS} steps")
    prior_of(backbone.recipe, BATCH * PER_EPOCH).divergence(network).backward()
    found = gates(network).drop_logit.grad
    _demand(found is not None and bool((found != 0).all()), "a drop probability has no gradient")
    network.zero_grad()
    return f"{len(own) + 1} tensors"


def _colours(backbone: Backbone) -> ImageData:
    """Images of three shades, told apart by their level."""
    channels, height, width = backbone.input_shape
    images = BATCH * PER_EPOCH
    labels = torch.arange(images) % CLASSES
    noise = torch.randint(0, 60, (images, channels, height, width), generator=generator(0, "data"))
    level = (labels * 90).view(-1, 1, 1, 1)
    part = Part(labels, tuple(map(str, range(images))), (noise + level).to(torch.uint8))
    usual = Preprocessing(channels, height, (0.5,) * channels, (0.25,) * channels)
    held_out = part.subset(range(BATCH))
    return ImageData(DataName("colours"), tuple("abc"), part, held_out, None, usual, False)


def _trains(backbone: Backbone, network: nn.Module, data: ImageData) -> str:
    recipe = dataclasses.replace(
        backbone.recipe, epochs=EPOCHS, batch_size=BATCH, drop_delay_epochs=1.0,
        lr=min(backbone.recipe.lr, 0.01), cutout=0,
    )  # fmt: skip
    losses = [record.loss for record in fit_network(network, data, recipe)]
    first, last = losses[0], losses[-1]
    _demand(last < first, f"loss {first:.2f}, at the end {last:.2f}")
    return f"loss {first:.2f} -> {last:.2f}"


def _slims(network: nn.Module, keep: Tensor, batches: list[Tensor]) -> str:
    sizes = count(network, keep)
    for row in range(DRAWN):
        smaller = checked_slim(Path(f"candidate {row}"), network, keep[row], batches)
        found = sum(parameter.numel() for parameter in smaller.parameters())
        wanted = int(sizes.params[row])
        _demand(found == wanted, f"{found} parameters, counted {wanted}")
    share = float(sizes.params.double().mean()) / parameter_count(network)
    return f"{DRAWN} candidates of {share:.0%} of the parameters"


def _travels(
    backbone: Backbone, network: nn.Module, keep: Tensor, data: ImageData, batches: list[Tensor]
) -> str:
    recipe = backbone.recipe
    supernet = SupernetSpec(
        backbone.name, backbone.options, recipe.gates, recipe.groups, data.classes,
        data.preprocessing, data.name,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.safetensors"
        about = NetworkInfo(
            supernet=supernet, candidate="0", chosen="id", held_out_errors=0, held_out_images=1,
            made_from="", held_out_digest="", **size_fields(network, keep),
        )  # fmt: skip
        write_network(path, checked_slim(path, network, keep, batches), about)
        read = "import sys, pgnas_cli.registry as r, pgnas_cli; r.admit(sys.argv[2]);"
        read += " pgnas_cli.load(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", read, str(path), backbone.name], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        _demand(done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1])
        return f"{path.stat().st_size // 1024} KiB"


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Failed(otherwise)

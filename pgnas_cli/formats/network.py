"""A slim network on disk, verified, and loaded again from the file alone.

The file holds the slim tensors, how each layer was cut, and a fingerprint: the logits of one fixed
input, compared on loading, since a newer version of a backbone's package may compute something
else from the same tensors.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PgnasError, one_line
from ..gates import gates
from ..machine import full_float32
from ..run import Run, newest_run
from ..run.posterior import SupernetSpec, check_supernet
from ..seeds import generator
from ..sizes import count, parameter_count, whole_macs
from ..slimming import (
    Cut,
    Layout,
    agree,
    arranged,
    difference,
    largest_difference,
    plan,
    reshape_,
    slim,
    ungated_copy,
    wire,
)
from ..storage import file_digest, from_json, to_json
from ..tensors import checked, read_header, read_values, restore_, versioned, write_tensors
from ..timing import LONGEST_STEP, time_table

NETWORK = "pgnas.network/1"
TOLERANCE = 1e-4  # of the largest logit: masked and slim network must agree to this
WIDEST = 2  # times the whole network; rounding and planes of ones add channels
FINGERPRINT_TOLERANCE = 1e-3  # of the largest logit: other machines round otherwise


@dataclass(frozen=True)
class PredictedTime:
    """What a time table says of a network."""

    ms: float  # milliseconds of a forward
    whole_ms: float  # of the whole network, measured
    runtime: str
    batch: int
    threads: int
    device: str  # its name
    precision: str = "float32"

    @property
    def sane(self) -> bool:
        """Whether its numbers can be."""
        times = 0 <= self.ms < LONGEST_STEP and 0 < self.whole_ms < LONGEST_STEP
        return times and min(self.batch, self.threads) >= 1

    @property
    def share(self) -> float:
        """Of the whole network's time."""
        return self.ms / self.whole_ms


@dataclass(frozen=True)
class NetworkInfo:
    """What an exported file says about its network."""

    supernet: SupernetSpec
    cuts: dict[str, Cut]
    candidate: str  # id of the candidate, "whole" or "twin"
    chosen: str  # as what it was exported: "best", "id", "twin" or "whole"
    params: int
    paper_params: int
    macs: int
    whole_params: int
    whole_macs: int
    held_out_errors: int
    held_out_images: int
    made_from: str  # sha256 of the posterior's file
    held_out_digest: str  # of the images that were held out
    fixed_drop: float | None = None  # the rate that the fit held all gates at; 0: no gates
    finetuned_epochs: int = 0  # after it was cut out
    layout: Layout = "small"  # of an ONNX file; a safetensors file takes any on loading
    predicted: PredictedTime | None = None  # of a run with a time table


def fixed_input(input_shape: tuple[int, int, int]) -> Tensor:
    """The input of the fingerprint, float (1, channels, height, width)."""
    return torch.randn(1, *input_shape, generator=generator(0, "fingerprint"))


def checked_slim(
    path: Path,
    network: nn.Module,
    keep: Tensor,
    batches: list[Tensor],
    layout: Layout = "small",
    *,
    round_to: int = 1,
) -> nn.Module:
    """The candidate `keep` as a slim network that has the masked one's logits on `batches`.

    Raises PgnasError, naming the `path` that is not written, where it has not.
    """
    smaller = slim(network, keep, layout, round_to=round_to)
    differs = largest_difference(network, keep, smaller, batches)
    if not agree(differs, TOLERANCE, network, batches, keep):
        raise PgnasError(
            f"the slim network differs from the masked one by {differs:.1e} of the largest logit"
            f" (allowed {TOLERANCE:.0e}); '{path}' was not written, please report this"
        )
    return smaller


def write_network(path: Path, smaller: nn.Module, about: NetworkInfo) -> None:
    """Store a slim network in layout "small"."""
    smaller = smaller.cpu()
    with torch.no_grad(), full_float32():
        fingerprint = smaller(fixed_input(about.supernet.preprocessing.input_shape))
    tensors = {f"network.{k}": v for k, v in smaller.state_dict().items()}
    write_tensors(path, NETWORK, {**tensors, "fingerprint": fingerprint}, to_json(about))


def read_network(path: Path, layout: Layout = "small") -> tuple[nn.Module, NetworkInfo]:
    """Rebuild an exported network from its file alone.

    Raises PgnasError where the file is damaged or computes something else than when written.
    """
    header, content = read_header(path, NETWORK)
    about = about_of(content, path)
    shape = (1, len(about.supernet.classes))
    named = {k.removeprefix("network."): v for k, v in header.items() if k != "fingerprint"}
    if "fingerprint" not in header or tuple(header["fingerprint"].shape) != shape:
        raise PgnasError(f"'{path}' is damaged: it has no fingerprint of its logits")
    supernet = about.supernet.network()
    whole = ungated_copy(supernet)
    _check_cuts(about.cuts, named, whole, path)
    network = reshape_(whole, about.cuts)
    checked(named, network.state_dict(), path)
    if sum(p.numel() for p in network.parameters()) != about.params:
        raise PgnasError(f"'{path}' is damaged: it has not the {about.params} parameters it names")
    tensors = read_values(path, header)
    fingerprint = tensors.pop("fingerprint")
    state = {k.removeprefix("network."): v for k, v in tensors.items()}
    _check_positions(network, state, path)
    restore_(network, state)
    network.eval()
    try:
        given = fixed_input(about.supernet.preprocessing.input_shape)
        with torch.no_grad(), full_float32():
            logits = network(given)
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
        raise PgnasError(
            f"'{path}' is damaged: its layers do not fit together ({one_line(error)})"
        ) from None
    if fingerprint.shape != logits.shape:
        raise PgnasError(f"'{path}' is damaged: it has no fingerprint of its logits")
    differs = difference(logits, fingerprint)
    if not agree(differs, FINGERPRINT_TOLERANCE, network, [given]):
        raise PgnasError(
            f"'{path}' computes other logits than when it was written (by {differs:.1e} of the"
            " largest): a package of its backbone has changed, install the version of then"
        )
    return arranged(network, layout, gates(supernet).graph), about


def about_of(content: dict[str, Any], path: Path) -> NetworkInfo:
    """What a file says of its network, from its metadata; nothing is built.

    Raises PgnasError where a field is missing or out of bounds, and where the network that the file
    names has another size than it says.
    """
    fields = {k: v for k, v in content.items() if k not in versioned(NETWORK)}
    about = from_json(NetworkInfo, fields, path)
    sane = (
        0 <= about.params <= WIDEST * about.whole_params < 2**53
        and 0 <= about.paper_params < 2**53
        and 0 <= about.macs < 2**53
        and 0 < about.whole_macs < 2**53
        and 0 <= about.held_out_errors <= about.held_out_images < 2**53
        and about.held_out_images > 0
        and 0 <= about.finetuned_epochs < 2**53
        and (about.predicted is None or about.predicted.sane)
    )
    if not sane:
        raise PgnasError(f"'{path}' is damaged: its sizes cannot be")
    found, options = check_supernet(about.supernet, path), about.supernet.options
    if found is not None and not found.inflates_within(options, about.whole_params, path):
        whole = parameter_count(found.network)
        if whole != about.whole_params:
            raise PgnasError(
                f"'{path}' says {about.whole_params} parameters of {about.supernet.backbone}, which"
                f" has {whole}; it was written by another version of the backbone"
            )
    return about


def _check_cuts(
    cuts: dict[str, Cut], described: dict[str, Tensor], whole: nn.Module, path: Path
) -> None:
    """Refuse sizes that no tensor of the file bears out, before memory is set aside for them."""
    known = {**dict(whole.named_modules()), **dict(whole.named_parameters())}
    shapes = [tensor.shape for tensor in (*whole.parameters(), *described.values())]
    widest = WIDEST * max(max(shape, default=0) for shape in shapes)
    for layer, cut in cuts.items():
        counts = (cut.outputs, cut.inputs, cut.picks, cut.first)
        if min(counts) < 0 or min(cut.outputs, cut.groups) < 1 or max(counts[:3]) > widest:
            raise PgnasError(f"'{path}' is damaged: layer {layer} has impossible sizes")
        wanted: dict[str, tuple[int, ...]] = {}  # the first axes of its tensors
        if cut.kind in ("mix", "grouped"):
            wanted[f"{layer}.weight"] = (cut.outputs, cut.inputs)[: 1 + (cut.kind == "mix")]
        elif cut.kind == "constant":
            wanted[f"{layer}.value"] = (cut.outputs,)
        if cut.picks:
            wanted[f"{layer}.read"] = (cut.inputs - cut.plane,)
        for name, sizes in wanted.items() if layer in known else ():  # else `reshape_` says so
            found = described[name].shape[: len(sizes)] if name in described else None
            if found != sizes:
                raise PgnasError(
                    f"'{path}' does not fit: layer {layer} has {sizes}, its tensor {found}"
                )


def _check_positions(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    for name, module in network.named_modules():
        read = state.get(f"{name}.read")
        picks = getattr(module, "picks", 0)
        if read is not None and len(read) and not 0 <= int(read.min()) <= int(read.max()) < picks:
            raise PgnasError(f"'{path}' is damaged: layer {name} reads channels that are not there")


def size_fields(network: nn.Module, keep: Tensor, round_to: int = 1) -> dict[str, Any]:
    """The fields of NetworkInfo that say how the candidate `keep`, bool (gates,), is cut."""
    sizes = count(network, keep[None], round_to=round_to)
    return {
        "cuts": plan(network, wire(network, keep[None], round_to=round_to)),
        "params": int(sizes.params[0]),
        "paper_params": int(sizes.paper_params[0]),
        "macs": int(sizes.macs[0]),
        "predicted": _predicted(network, int(sizes.time[0])),
        "whole_params": parameter_count(network),
        "whole_macs": whole_macs(network),
    }


def origin(files: Sequence[Path], made_from: set[str], named: Run | None) -> Run | None:
    """The run that one of `files` came from: the named one, one beside them, or the newest.

    `made_from` holds the digests of their posteriors. Raises PgnasError where a run is named and is
    not it.
    """
    runs = [named] if named else [Run(path.parent) for path in files]
    if named is None:
        with contextlib.suppress(PgnasError):
            runs.append(newest_run(fitted=True))
    for run in dict.fromkeys(runs):
        with contextlib.suppress(PgnasError):  # none there
            if file_digest(run.posterior) in made_from:
                return run
    if named is not None:
        raise PgnasError(
            f"'{named.folder}' is not the run that these networks came from; leave `run` out, or"
            " name it"
        )
    return None


def _predicted(network: nn.Module, nanoseconds: int) -> PredictedTime | None:
    """What the network's time table predicts; None without one."""
    table = time_table(network)
    if table is None:
        return None
    return PredictedTime(
        nanoseconds / 1e6, table.whole, table.runtime, table.batch, table.threads, table.device,
        table.precision,
    )  # fmt: skip

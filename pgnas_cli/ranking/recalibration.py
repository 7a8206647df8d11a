"""Batch-norm statistics of a candidate, estimated anew under its own mask.

The fit's running statistics are a mean over many masks; those of one candidate differ where masks
differ. The images are of the fit, as they are judged, so held-out images stay unseen.

Nothing in the network is changed: before a batch-norm layer, a scale and a shift per row make it
compute what it would with the row's own statistics, so that candidates can share a forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import ImageData, decoded
from ..errors import PgnasError
from ..gates import masked
from ..seeds import generator

BATCH = 64  # images in a forward; the mean over the forwards counts


def norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers with running statistics."""
    found = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    return [norm for norm in found if norm.running_mean is not None]


def recalibration_images(data: ImageData, images: int, workers: int) -> list[Tensor]:
    """`images` images of the fit part in batches, normalised, float32 on the CPU.

    Which ones is a function of the data alone. Raises PgnasError where there are not as many.
    """
    if not 2 <= images <= len(data.fit):
        raise PgnasError(
            f"--recalibrate {images} is out of range; possible: 2 to {len(data.fit)} images"
        )
    order = torch.randperm(len(data.fit), generator=generator(0, "recalibration"))
    part = decoded(data.fit.subset(order[:images].tolist()), data.preprocessing, workers)
    assert part.pixels is not None
    pieces = -(-images // BATCH)
    return [data.preprocessing.normalised(piece) for piece in part.pixels.tensor_split(pieces)]


@contextmanager
def _before_norms(
    layers: list[_BatchNorm], rows: Callable[[int, Tensor], tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Let layers normalise by rows(place, input): means, variances, (channels,) or one per row."""

    def hook(place: int, norm: _BatchNorm) -> Callable[..., tuple[Tensor]]:
        own_mean, own_var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)

        def rescaled(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            mean, var = rows(place, given[0])
            scale = ((own_var + norm.eps) / (var + norm.eps)).sqrt()
            shift = own_mean - scale * mean
            wide = (-1, given[0].shape[1], *(1 for _ in given[0].shape[2:]))
            return (given[0] * scale.view(wide) + shift.view(wide),)

        return rescaled

    handles = [n.register_forward_pre_hook(hook(place, n)) for place, n in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Recalibration:
    """Statistics of candidates, each estimated once, when it is first asked for."""

    def __init__(self, network: nn.Module, keep: Tensor, batches: list[Tensor]) -> None:
        device = next(network.parameters()).device
        self.network, self.keep = network, keep.to(device)
        self.batches = [b.to(device, memory_format=torch.channels_last) for b in batches]
        self.layers = norms(network)
        if not self.layers:
            raise PgnasError(
                f"{type(network).__name__} has no batch-norm statistics; leave --recalibrate out"
            )
        self.images = sum(map(len, batches))
        self.means: dict[int, Tensor] = {}  # candidate -> (channels of all layers,)
        self.variances: dict[int, Tensor] = {}
        self.widths = [cast(Tensor, norm.running_mean).numel() for norm in self.layers]

    @torch.inference_mode()
    def statistics(self, candidate: int) -> tuple[Tensor, Tensor]:
        """Means and variances under the candidate's mask, each (channels of all layers,)."""
        if candidate not in self.means:
            seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.layers]

            def batch_statistics(place: int, given: Tensor) -> tuple[Tensor, Tensor]:
                axes = [0, *range(2, given.dim())]
                var, mean = torch.var_mean(given, axes, correction=0)
                count = given.numel() // given.shape[1]
                seen[place].append((mean, var * (count / max(1, count - 1))))
                return mean, var

            with (
                masked(self.network, self.keep[candidate]),
                _before_norms(self.layers, batch_statistics),
            ):
                for batch in self.batches:
                    self.network(batch)
            # A layer that no forward reached keeps its own.
            own = [[(cast(Tensor, n.running_mean), cast(Tensor, n.running_var))]
                   for n in self.layers]  # fmt: skip
            found = [some or kept for some, kept in zip(seen, own, strict=True)]
            for into, which in ((self.means, 0), (self.variances, 1)):
                into[candidate] = torch.cat(
                    [torch.stack([pair[which] for pair in some]).mean(0) for some in found]
                )
        return self.means[candidate], self.variances[candidate]

    @contextmanager
    def of(self, candidates: Tensor) -> Iterator[None]:
        """Context: row i of a forward is normalised by the statistics of candidates[i]."""
        distinct, place_of = candidates.cpu().unique(return_inverse=True)
        pairs = [self.statistics(candidate) for candidate in distinct.tolist()]
        where = place_of.to(pairs[0][0].device)
        means = torch.stack([mean for mean, _ in pairs])[where].split(self.widths, 1)
        variances = torch.stack([var for _, var in pairs])[where].split(self.widths, 1)
        with _before_norms(self.layers, lambda place, _: (means[place], variances[place])):
            yield

    def apply_(self, candidate: int) -> None:
        """Make the candidate's statistics those of the network."""
        means, variances = (x.split(self.widths) for x in self.statistics(candidate))
        for norm, mean, var in zip(self.layers, means, variances, strict=True):
            cast(Tensor, norm.running_mean).copy_(mean)
            cast(Tensor, norm.running_var).copy_(var)

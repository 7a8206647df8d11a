"""The gate: its draw, and the layers that carry it.

A gate sits on one input channel of a convolution or linear layer and multiplies it by a number in
[0, 1]. Gates of a group share one drop probability, and **drop probability means the probability
that a channel is removed**. The paper writes Bernoulli(p) for the mask in Eq. 11 and 13 and (1-p)
for what is kept in Eq. 15; Table 4 (a larger prior strength gives fewer parameters) settles it.

Masking the k-th input slice of a kernel is the same as zeroing its k-th input channel (Eq. 12-13),
so the gate acts on the input. What stays is not rescaled by 1/(1-p): the weights are used as drawn.

Training draws a relaxed gate (Eq. 16, where the printed log(log r) can only mean log(-log r)):

    z = sigmoid((logit(p) + g1 - g2) / temperature),   g1, g2 ~ Gumbel,   g1 - g2 ~ Logistic
    kept = 1 - z

and a candidate a hard one: kept ~ Bernoulli(1 - p), the same for every image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def logistic_noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Standard logistic numbers, on the generator's device: two Gumbel variables' difference."""
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device=generator.device)
    # rand() is in [0, 1) on a grid of 2^-24: the clamp keeps the ends finite.
    return uniform.clamp_(2.0**-25, 1 - 2.0**-24).logit_()


def relaxed_keep(
    drop_logit: Tensor,  # (gates,), log-odds of being dropped
    noise: Tensor,  # (batch, gates), standard logistic
    *,
    temperature: float,  # > 0; towards 0 the draw becomes hard
) -> Tensor:  # (batch, gates), in (0, 1): the share that is kept
    """Eq. 16, differentiable in `drop_logit`; 1 - z written without the subtraction."""
    return torch.sigmoid(-(drop_logit + noise) / temperature)


def hard_keep(
    drop_probability: Tensor,  # (gates,), in [0, 1]
    *,
    generator: torch.Generator,
    rows: tuple[int, ...] = (),
    open_gates: Tensor | None = None,  # `undecided` of the probabilities, if known
) -> Tensor:  # bool (*rows, gates), True stays
    """Bernoulli draws of whole channels; probability 0 always keeps and 1 always drops.

    No number is drawn for those two.
    """
    places = undecided(drop_probability) if open_gates is None else open_gates
    keep = (drop_probability < 1).expand(*rows, -1).clone()
    uniform = torch.rand(*rows, len(places), generator=generator, device=generator.device)
    return keep.index_copy_(-1, places, uniform.to(keep.device) >= drop_probability[places])


def undecided(drop_probability: Tensor) -> Tensor:
    """Places of the gates that draws differ in, int64; finding them waits for a device."""
    return ((drop_probability > 0) & (drop_probability < 1)).nonzero().flatten()


class Gated:
    """Mixed into a layer's own class: multiplies the layer's input before its own forward.

    `keep` says how the gates act, and nothing else does (not `training`): None is open, a vector
    (channels,) is one mask for every image, a matrix (batch, channels) has a row per image.

    The product is not kept for the backward pass: the layer before keeps the input anyway.
    """

    keep: Tensor | None = None
    ungated: type[nn.Module]  # the layer's own class

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.ungated,), self.__dict__.copy()

    def forward(self, input: Tensor) -> Tensor:
        if self.keep is None:
            return super().forward(input)  # type: ignore[misc,no-any-return]
        hard = self.keep.dim() == 1 and self.keep.dtype == torch.bool
        if hard and torch.is_grad_enabled() and self._masks_weight():
            return self._with_masked_weight(input, self.keep)
        keep = _shaped_like(self.keep, input, last=isinstance(self, nn.Linear))
        gated = input * keep
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(gated)  # type: ignore[misc,no-any-return]
        with saved_tensors_hooks(_forgetting(input, keep, gated), _remembered):
            return super().forward(gated)  # type: ignore[misc,no-any-return]

    def _masks_weight(self) -> bool:
        """Whether the layer applies its weights as they are: each mask of an input is one of them.

        Not one that standardises them, nor while it is compiled.
        """
        plain = self.ungated in (nn.Conv2d, nn.Linear) or self.ungated.__name__ == "Conv2dSame"
        alone = getattr(self, "groups", 1) == 1
        own = "weight" in self._parameters  # type: ignore[attr-defined] # else it is computed
        return plain and alone and own and not torch.compiler.is_compiling()

    def _with_masked_weight(self, input: Tensor, keep: Tensor) -> Tensor:
        """The same, Eq. 12-13: a weight is smaller than the images of a batch."""
        weight: Tensor = self._parameters["weight"]  # type: ignore[attr-defined]
        mask = keep.view(1, -1, *[1] * (weight.dim() - 2)).to(weight.dtype)
        self.__dict__["weight"] = weight * mask
        try:
            return super().forward(input)  # type: ignore[misc,no-any-return]
        finally:
            del self.__dict__["weight"]


@dataclass(frozen=True)
class _Product:
    """A view of `input * keep`, which is multiplied again where the backward pass reads it."""

    input: Tensor
    keep: Tensor
    version: int  # of the input: it must not have been changed in place since
    view: tuple[Any, ...]  # size, strides and offset


def _forgetting(input: Tensor, keep: Tensor, gated: Tensor) -> Callable[[Tensor], Any]:
    """What a layer keeps for its backward pass: of its gated input only how it is made again."""
    place = gated.untyped_storage().data_ptr()
    input, keep = input.detach(), keep.detach()

    def kept(tensor: Tensor) -> Any:
        if tensor.dtype != gated.dtype or tensor.untyped_storage().data_ptr() != place:
            return tensor
        view = tensor.size(), tensor.stride(), tensor.storage_offset()
        return _Product(input, keep, input._version, view)

    return kept


def _remembered(kept: Any) -> Tensor:
    if not isinstance(kept, _Product):
        return kept  # type: ignore[no-any-return]
    if kept.input._version != kept.version:
        raise RuntimeError("the input of a gated layer was changed in place before its gradient")
    return (kept.input * kept.keep).as_strided(*kept.view)


def _shaped_like(keep: Tensor, features: Tensor, *, last: bool) -> Tensor:
    """`keep` with singleton axes, ready to multiply (batch, channels, ...) or (..., channels)."""
    shape = [1] * features.dim()
    shape[-1 if last else 1] = keep.shape[-1]
    if keep.dim() == 2:
        shape[0] = keep.shape[0]
    return keep.view(shape).to(features.dtype)


@cache
def gated_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """`layer_class` with gates, named Concrete + its name; one class for each layer class.

    The layer keeps its own forward (timm's Conv2dSame pads, ScaledStdConv2d standardises), its
    state-dict keys and its hooks, because the object stays and only its class changes.
    """
    name = f"Concrete{layer_class.__name__}"
    return type(name, (Gated, layer_class), {"__module__": __name__, "ungated": layer_class})


def _blank(layer_class: type[nn.Module]) -> nn.Module:
    """A gated layer without content, for copies to fill."""
    kind = gated_class(layer_class)  # type: ignore[arg-type]
    return kind.__new__(kind)

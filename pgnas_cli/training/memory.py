"""Memory that a training step takes for its images."""

import contextlib

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from ..graph import in_mode


def activation_bytes(network: nn.Module, input_shape: tuple[int, int, int]) -> int | None:
    """Bytes that a step in float32 keeps of one image for its backward pass, an estimate.

    Counted on the meta device, with gates open: nothing is computed, and `network` stays as it is.
    None where its forward looks at numbers. What a kernel takes for itself comes on top.
    """
    state = {
        name: torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }
    own = {tensor.untyped_storage()._cdata for tensor in state.values()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    images = torch.empty(2, *input_shape, device="meta")  # batch-norm wants two
    with (
        contextlib.suppress(RuntimeError, TypeError, ValueError),  # no estimate, then
        in_mode(network, training=True),
        saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        functional_call(network, state, (images,))
        return sum(t.untyped_storage().nbytes() for k, t in kept.items() if k not in own) // 2
    return None

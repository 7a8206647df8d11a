"""Mark the output of an operation without weights (a pool, a skip) as one that can be chosen."""

from torch import Tensor, nn


class OperationGate(nn.Module):
    """Passes its input on; a place for one gate that keeps an operation, or takes it out.

    A backbone puts it behind the operation, on (batch, channels, height, width). It has a gate only
    where operations are asked for ("all+operations"). What is taken out is zero in all channels.
    """

    cost: float = 0.0  # prior cost of keeping the operation, in squared weights

    def forward(self, input: Tensor) -> Tensor:
        return input

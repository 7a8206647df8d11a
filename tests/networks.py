"""Small networks and candidates for tests and benches; every random number has a seed."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pgnas_cli.gates import draw
from pgnas_cli.registry.build import create_supernet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm, biases and per-channel parameters, in place; evaluation mode.

    Fresh scales of one and biases of zero hide mistakes.
    """
    g = seeded(seed)
    done = set()
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.normal_(generator=g)
                done.add(id(tensor))
            module.running_var.uniform_(0.5, 2.0, generator=g)
    for name, parameter in network.named_parameters():
        vector = sum(n > 1 for n in parameter.shape) <= 1
        if not vector or id(parameter) in done or name.startswith("gates."):
            continue
        if name.endswith("bias"):
            parameter.data.normal_(std=0.3, generator=g)
        else:  # layer scale, skip gains, layer norm
            parameter.data.uniform_(0.5, 1.5, generator=g)
    return network.eval()


def tiny(size: int = 8, channels: int = 1, **options: object) -> nn.Module:
    """multibranch-tiny with randomised batch-norm, evaluation mode."""
    network = create_supernet("multibranch-tiny", 10, input_shape=(channels, size, size), **options)
    return randomised(network)


def random_keep(network: nn.Module, drop: float, seed: int = 0) -> Tensor:
    """One candidate at a single drop probability, bool (gates,)."""
    return draw(network, generator=seeded(seed), drop_probability=drop)

"""Networks as after training: fresh scales of one and biases of zero hide mistakes."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm, biases and per-channel parameters, in place; evaluation mode."""
    g = torch.Generator().manual_seed(seed)
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

"""Take a network out of what merely runs it."""

from typing import Any, cast

import torch
from torch import nn

from ..errors import PgnasError


def unwrapped(network: Any, called: str) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or torch.compile; inner modules that
    are wrapped are taken out in place.

    Raises PgnasError for what is no module or is one of TorchScript; `called` is who gave it.
    """
    if not isinstance(network, nn.Module):
        raise PgnasError(
            f"{called} gives a {type(network).__name__} as its network; an nn.Module is wanted"
        )
    found = _inner(network)
    for module in list(found.modules()):
        for name, child in module.named_children():
            module._modules[name] = _inner(child)
        if isinstance(module, torch.jit.ScriptModule):
            raise PgnasError(
                f"{called} gives a network of TorchScript, which cannot be pruned; give the module"
                " that it was made from"
            )
    return found


def _inner(module: nn.Module) -> nn.Module:
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if "_orig_mod" in module._modules:  # of torch.compile
            module = cast(nn.Module, module._modules["_orig_mod"])
        elif isinstance(module, parallel):
            module = cast(nn.Module, module.module)
        else:
            module._compiled_call_impl = None  # of module.compile()
            return module

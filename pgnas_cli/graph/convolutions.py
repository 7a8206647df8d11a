"""Convolutions with a forward of their own: what kernel they really apply.

timm's Conv2dSame only pads; StdConv2d and its relatives standardise their weights over all inputs,
so slices of the stored weight are not slices of the applied one. The applied kernel is caught on
its way into `torch.conv2d`, whatever the class does before.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..seeds import generator


def ungated(kind: Any) -> Any:
    """The class that a gated layer's class was made from, or `kind` itself."""
    return getattr(kind, "ungated", kind)


class _Catch(TorchFunctionMode):
    """Notes the weight of each convolution that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            self.weights.append(args[1] if len(args) > 1 else kwargs["weight"])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def plain_twin(module: nn.Conv2d) -> nn.Conv2d | None:
    """A convolution of a plain class with the kernel that `module` applies, or None.

    `module` itself where its stored weight is what it applies. None where its forward is not one
    convolution of its input, padded or not.
    """
    if ungated(type(module)).forward is nn.Conv2d.forward:
        return module
    side = 2 * max(
        d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)
    )
    probe = torch.randn(2, module.in_channels, side, side, generator=generator(0, "probe"))
    probe = probe.to(module.weight)
    training = module.training
    module.eval()
    try:
        with _Catch() as caught:
            expected = module.forward(probe)  # not through hooks
    except (RuntimeError, TypeError, ValueError):
        return None
    finally:
        module.train(training)
    if window_of(module) is None:
        return None
    if len(caught.weights) != 1 or caught.weights[0].shape != module.weight.shape:
        return None
    if torch.equal(caught.weights[0], module.weight):
        others = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
        if others - {"weight", "bias"}:
            return None
        return module if _reads_each_input_alone(module, probe) else None
    twin = plain_shell(module)
    twin.to(module.weight)
    twin.weight.copy_(caught.weights[0])
    if module.bias is not None and twin.bias is not None:
        twin.bias.copy_(module.bias)
    close = torch.allclose(twin(probe), expected, atol=1e-5 * float(expected.abs().max()))
    return twin if close else None


@torch.no_grad()
def is_plain_linear(module: nn.Linear) -> bool:
    """Whether a linear layer, of whatever class, computes x W' + b and nothing else."""
    if ungated(type(module)).forward is nn.Linear.forward:
        return True
    probe = torch.randn(2, module.in_features, generator=generator(0, "probe"))
    probe = probe.to(module.weight)
    return torch.equal(module.forward(probe), F.linear(probe, module.weight, module.bias))


Window = tuple[tuple[int, int, int, int], tuple[int, int]]


def window_of(module: nn.Conv2d) -> Window | None:
    """Padding less kernel overhang (left, right, top, bottom), and strides: the size it returns.

    A forward of its own may pad by the attribute or to ceil(size / stride): it is asked. None where
    it does neither.
    """
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    strides = cast("tuple[int, int]", tuple(module.stride))
    same: Window = (0, 0, 0, 0), strides
    if module.padding == "same":
        return same
    before = (0, 0) if module.padding == "valid" else cast("tuple[int, int]", module.padding)
    (top, left), (tall, wide) = before, reach
    # All at one end: torch does not pad a row of one pixel by 2 and -2.
    told: Window = (0, 2 * left - wide, 0, 2 * top - tall), strides
    if ungated(type(module)).forward is nn.Conv2d.forward:
        return told
    return next((w for w in (told, same) if _has_window(module, w, max(reach))), None)


@torch.no_grad()
def _has_window(module: nn.Conv2d, window: Window, reach: int) -> bool:
    pads, (down, right) = window
    for size in range(reach + 1, reach + 2 + max(down, right)):
        probe = torch.zeros(1, module.in_channels, size, size).to(module.weight)
        expected = F.pad(probe, pads)[:, :, ::down, ::right].shape[2:]
        if module.forward(probe).shape[2:] != expected:
            return False
    return True


def plain_shell(module: nn.Conv2d) -> nn.Conv2d:
    """A convolution of a plain class as large as `module`; its tensors' values are not set."""
    plain: Any = Conv2dSame if getattr(module, "same_pad", False) else nn.Conv2d
    twin: nn.Conv2d = plain(
        module.in_channels, module.out_channels, module.kernel_size, stride=module.stride,
        padding=module.padding, dilation=module.dilation, groups=module.groups,
        bias=module.bias is not None,
    )  # fmt: skip
    return twin.requires_grad_(module.weight.requires_grad)


def _reads_each_input_alone(module: nn.Conv2d, probe: Tensor) -> bool:
    """Whether outputs are sums over inputs: f(a + b) + f(0) = f(a) + f(b) for split channels."""
    half = torch.zeros_like(probe)
    half[:, ::2] = probe[:, ::2]
    left = module.forward(probe) + module.forward(torch.zeros_like(probe))
    right = module.forward(half) + module.forward(probe - half)
    return torch.allclose(left, right, atol=1e-4 * max(1e-6, float(left.abs().max())))

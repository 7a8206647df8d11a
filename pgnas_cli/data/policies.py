"""AutoAugment, RandAugment and AugMix of training images, by timm."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import AugmentOp
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from ..naming import no_policy
from ..seeds import seeded_globals
from .dataset import IMAGENET_MEAN, Preprocessing


@dataclass(frozen=True)
class Policy:
    """A policy of timm; what it does to an image is a function of the image and a seed."""

    text: str
    size: int  # pixels
    mean: tuple[float, ...]  # fills what a shift uncovers
    interpolation: str

    def __call__(self, pixels: Tensor, seed: int) -> Tensor:
        """uint8 (channels, height, width), changed."""
        change = _transform(self)
        image = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        with seeded_globals(seed):
            image = change(image)
        if len(pixels) == 1:
            image = image.convert("L")
        rows = torch.from_numpy(np.array(image))
        return rows.view(*pixels.shape[1:], -1).permute(2, 0, 1)


@lru_cache
def _transform(policy: Policy) -> Callable[[Image.Image], Image.Image]:
    parts: Any = transforms_imagenet_train(
        policy.size, auto_augment=policy.text, interpolation=policy.interpolation,
        mean=tuple(policy.mean) * (3 // len(policy.mean)), separate=True,
    )  # fmt: skip
    change: Callable[[Image.Image], Image.Image] = parts[1]
    for operation in _operations(change):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterised
    return change


def _operations(part: Any) -> Iterator[AugmentOp]:
    """timm's operations anywhere in a transform."""
    if isinstance(part, AugmentOp):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _operations(inner)
    elif hasattr(part, "__dict__"):
        yield from _operations(list(vars(part).values()))


def _posterised(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm asks for 0 bits at the highest magnitude, which Pillow refuses."""
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


def policy_of(text: str, preprocessing: Preprocessing) -> Policy | None:
    """The policy that timm calls `text`; None for ""."""
    if not text:
        return None
    return Policy(text, preprocessing.size, preprocessing.mean, preprocessing.interpolation)


def check_policy(text: str) -> None:
    """Raise PgnasError for a policy that timm cannot make, or that fails on an image."""
    policy = Policy(text, 32, IMAGENET_MEAN, "bilinear")
    try:
        policy(torch.zeros(3, policy.size, policy.size, dtype=torch.uint8), 0)
    except (AssertionError, ValueError, KeyError, IndexError, TypeError):
        raise no_policy(text) from None

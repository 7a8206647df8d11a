"""Photos that a random network does not see as one class, and such a network in both formats."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pgnas_cli.data import DataName, Preprocessing
from pgnas_cli.formats import (
    NetworkInfo,
    checked_slim,
    onnx_content,
    size_fields,
    write_network,
)
from pgnas_cli.gates import masked
from pgnas_cli.run.posterior import SupernetSpec

from .networks import random_keep, randomised, seeded

CLASSES = ("blue", "green", "red")


def noisy_photos(folder: Path, each: int = 24) -> Path:
    """`folder`/val/<class>/*.jpg: blocks of random colours, sizes of their own, some grey, some
    turned by EXIF."""
    draw = np.random.default_rng(0)
    for name in CLASSES:
        place = folder / "val" / name
        (place / "more").mkdir(parents=True)
        for index in range(each):
            grid = draw.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            size = (int(draw.integers(40, 130)), int(draw.integers(40, 130)))
            image = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
            exif = Image.Exif()
            exif[0x0112] = 6 if index % 4 == 2 else 1
            below = place / "more" if index % 3 == 2 else place
            image = image.convert("L") if index % 5 == 1 else image
            image.save(below / f"{index}.jpg", quality=92, exif=exif)
    return folder


def classifier_file(path: Path, channels: int = 3, size: int = 48) -> Path:
    """Write a random candidate for three classes to FILE.safetensors or FILE.onnx."""
    mean, std = (0.5, 0.4, 0.45)[:channels], (0.2, 0.25, 0.22)[:channels]
    images = Preprocessing(channels, size, mean, std, "bicubic", 0.9)
    backbone = "multibranch-tiny" if channels == 1 else "timm/test_efficientnet"
    spec = SupernetSpec(backbone, {}, "all", "layer", CLASSES, images, DataName("photos", True))
    whole: Any = randomised(spec.network())
    keep = random_keep(whole, 0.2)
    shape = (64, channels, 4, 4)
    blocks = F.interpolate(torch.randn(shape, generator=seeded(4)), size, mode="bicubic")
    with torch.no_grad(), masked(whole, keep):
        head = whole.head if channels == 1 else whole.classifier
        head.bias -= whole(blocks).mean(0)  # else one class is always ahead
    about = NetworkInfo(
        supernet=spec, candidate="7", chosen="id", held_out_errors=3, held_out_images=20,
        made_from="0" * 64, held_out_digest="abc", **size_fields(whole, keep),
    )  # fmt: skip
    some = torch.randn(9, *images.input_shape, generator=seeded(3))
    smaller = checked_slim(path, whole, keep, [some])
    if path.suffix == ".onnx":
        path.write_bytes(onnx_content(path, smaller, some, about, opset=18))
    else:
        write_network(path, smaller, about)
    return path

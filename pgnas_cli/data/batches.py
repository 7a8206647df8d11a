"""Batches of images, for fitting and for judging.

Small images that live in memory are augmented as one tensor. Random crops of photos are decoded in
workers. In both, what happens to an image is a function of (seed, epoch, index of the image): the
number of workers changes nothing.
"""

import dataclasses
import itertools
import math
import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..distributed import Rows, launched, rows_of
from ..errors import PgnasError
from ..fields import taken
from ..machine import FILLED, free_memory
from ..progress import note, track
from ..seeds import derived_seed, generator
from ..signals import StopRequest
from ..units import large
from .crops import RandomCrops
from .dataset import ImageData, Part, Preprocessing, levels
from .pictures import as_rgb, opened, reason_of
from .policies import Policy, policy_of

CPU = torch.device("cpu")


def placed(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` on `device`, its kernels in the memory layout of the images; changed in place."""
    layout = getattr(network, "memory_format", torch.channels_last)
    return network.to(device).to(memory_format=layout)


def augmented(
    images: Tensor,  # uint8 (batch, channels, height, width)
    draws: Tensor,  # float (batch, 3) in [0, 1): down, right, mirrored
    *,
    pad: int,  # pixels
    mirror: bool,
) -> Tensor:
    """Crop out of the padded image and mirror, image by image, as one gather."""
    size, device = images.shape[-1], images.device
    padded = F.pad(images, (pad,) * 4)
    shift = (draws[:, :2] * (2 * pad + 1)).long()
    rows = shift[:, :1] + torch.arange(size, device=device)
    columns = shift[:, 1:2] + torch.arange(size, device=device)
    if mirror:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    picture = torch.arange(len(images), device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def cut_out(
    images: Tensor,  # uint8 (batch, channels, height, width)
    centres: Tensor,  # float (batch, 2) in [0, 1): down, right
    size: int,  # pixels of the square, which may stick out
    level: Sequence[float],  # what it is filled with, per channel, in [0, 1]
) -> Tensor:
    """Blank a square out of each image (DeVries and Taylor, 2017)."""
    inside = []
    for axis, length in enumerate(images.shape[-2:]):
        middle = (centres[:, axis, None] * length).long()
        from_start = torch.arange(length, device=images.device) - middle + size // 2
        inside.append((from_start >= 0) & (from_start < size))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    blank = levels(tuple(level), images.device).round().to(images.dtype)
    return torch.where(square, blank, images)


def order(images: int, batch: int, seed: int, epoch: int) -> list[Tensor]:
    """The batches of one epoch as image indices; an incomplete last one is left out."""
    shuffled = torch.randperm(images, generator=generator(seed, "order", epoch))
    whole = [part for part in shuffled.split(batch) if len(part) == batch]
    return whole or [shuffled]


def steps_per_epoch(images: int, batch: int) -> int:
    """Number of batches that `order` gives."""
    return max(1, images // batch)


def training_batches(  # noqa: PLR0913 - what the images of a fit depend on
    data: ImageData,
    *,
    batch: int,
    seed: int,
    first_step: int,
    steps: int,
    workers: int,
    cutout: int = 0,  # pixels; small images only
    scale: tuple[float, float] = (0.35, 1.0),  # shares that a crop of a photo takes
    policy: str = "",  # of timm's AutoAugment; "": none
    device: torch.device = CPU,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Augmented uint8 images and labels for the steps [first_step, steps) of the whole fit.

    They are on `device`: images in memory are kept and augmented there, of others the next batch is
    copied while one is used. Each of several processes reads its rows of each batch.
    """
    part, about = data.fit, data.preprocessing
    changed = policy_of(policy, about)
    schedule = _schedule(part, batch, seed, first_step, steps)
    if part.pixels is not None:
        pad = max(1, part.pixels.shape[-1] // 8)
        pixels, labels = part.pixels.to(device), part.labels.to(device)
        drawn, draws = -1, torch.empty(0)
        for step, (epoch, batched) in enumerate(schedule, first_step):
            own = rows_of(len(batched)).part
            if drawn != epoch:
                randomness = generator(seed, "augment", epoch)
                drawn, draws = epoch, torch.rand(len(part), 3, generator=randomness).to(device)
            indices = batched[own].to(device, non_blocking=True)
            images = augmented(pixels[indices], draws[indices], pad=pad, mirror=data.mirror)
            if changed is not None:
                each = zip(images.cpu(), batched[own].tolist(), strict=True)
                drawn_of = partial(derived_seed, seed, "policy", epoch)
                images = torch.stack([changed(image, drawn_of(i)) for image, i in each]).to(device)
            if cutout:
                randomness = generator(seed, "cutout", step, device=device)
                centres = torch.rand(len(batched), 2, generator=randomness, device=device)
                images = cut_out(images, centres[own], cutout, data.preprocessing.mean)
            yield images, labels[indices]
        return
    crops = RandomCrops(about.size, _mode(about.channels), scale, about.interpolation, data.mirror)
    plan = (
        [(epoch, int(i)) for i in batched[rows_of(len(batched)).part]]
        for epoch, batched in schedule
    )
    source = _Crops(part, crops, seed, changed)
    with closing(_loaded(source, plan, workers, pinned=device.type == "cuda")) as batches:
        yield from _ahead(batches, device)


def _ahead(
    batches: Iterator[tuple[Tensor, Tensor]], device: torch.device
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches on `device`; a GPU copies the next one beside its work on this one."""
    if device.type != "cuda":
        for images, labels in batches:
            yield images.to(device), labels.to(device)
        return
    copying = torch.cuda.Stream(device)
    waiting: list[tuple[list[Tensor], torch.cuda.Event]] = []

    def arrived() -> tuple[Tensor, Tensor]:
        (images, labels), copied = waiting.pop()
        current = torch.cuda.current_stream(device)
        current.wait_event(copied)
        for tensor in (images, labels):
            tensor.record_stream(current)
        return images, labels

    for batch in batches:
        with torch.cuda.stream(copying):
            moved = [tensor.to(device, non_blocking=True) for tensor in batch]
            copied = copying.record_event()
        found = arrived() if waiting else None
        waiting.append((moved, copied))
        if found:
            yield found
    if waiting:
        yield arrived()


def training_rows(
    part: Part, *, batch: int, seed: int, first_step: int, steps: int
) -> Iterator[Rows]:
    """The rows of this process in each of those batches."""
    if not part.damaged:
        yield from itertools.repeat(rows_of(batch), steps - first_step)
        return
    for _, batched in _schedule(part, batch, seed, first_step, steps):
        yield rows_of(len(batched))


def _schedule(
    part: Part, batch: int, seed: int, first_step: int, steps: int
) -> Iterator[tuple[int, Tensor]]:
    """Epoch and image indices of each batch, without images that do not decode."""
    good = torch.ones(len(part), dtype=torch.bool)
    good[list(part.damaged)] = False
    per_epoch = steps_per_epoch(len(part), batch)
    for epoch in itertools.count(first_step // per_epoch):
        for place, indices in enumerate(order(len(part), batch, seed, epoch)):
            step = epoch * per_epoch + place
            if step >= steps:
                return
            if step >= first_step:
                read = indices[good[indices]]
                yield epoch, read if len(read) else good.nonzero()[:1, 0]


def evaluation_images(
    part: Part, preprocessing: Preprocessing, *, batch: int = 256, workers: int = 0
) -> Generator[Tensor, None, None]:
    """The images as the network is evaluated on them, uint8, in order, `batch` at a time."""
    if part.pixels is not None and part.pixels.shape[1:] == preprocessing.input_shape:
        yield from part.pixels.split(batch)
        return
    source = part
    if part.open is None:  # held in memory, for a network of another input size
        assert part.pixels is not None
        source = Part(part.labels, part.keys, open=partial(_open_pixels, part.pixels))
    plan = [[(0, int(i)) for i in rows] for rows in torch.arange(len(part)).split(batch)]
    for images, _ in _loaded(_Photos(source, _evaluation_crop(preprocessing)), plan, workers):
        yield images


def picture_batches(
    files: Sequence[str], preprocessing: Preprocessing, *, batch: int = 256, workers: int = 0
) -> Generator[tuple[Tensor, list[str | None]], None, None]:
    """Image files as `evaluation_images` has them, in order, `batch` at a time.

    Each batch is the images that decode, uint8, and for each file why it does not, or None.
    """
    plan = [[(0, int(i)) for i in rows] for rows in torch.arange(len(files)).split(batch)]
    source = _Files(files, _evaluation_crop(preprocessing))
    yield from _loaded(source, plan, workers, collate=_readable)


def evaluation_image(image: str | Path | Image.Image, preprocessing: Preprocessing) -> Tensor:
    """One image as `evaluation_images` has it, uint8 (1, channels, height, width).

    Raises PgnasError where it does not decode.
    """
    image = taken("image", str | Path | Image.Image, image)
    crop, called = _evaluation_crop(preprocessing), "the image"
    try:
        if isinstance(image, Image.Image):
            return crop(as_rgb(image.copy()))[None]  # turned in place
        called = f"'{image}'"
        return crop(opened(image, as_rgb))[None]
    except Exception as error:  # Pillow raises many kinds
        raise PgnasError(f"{called} cannot be read ({reason_of(error)})") from None


def _evaluation_crop(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """From an upright image in RGB to uint8 (channels, height, width): resized, centre cropped."""
    transform = create_transform(
        preprocessing.input_shape,
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop,
        use_prefetcher=True,
    )
    return partial(_cropped, transform, _mode(preprocessing.channels))


def _cropped(transform: Callable[[Image.Image], Any], mode: str, image: Image.Image) -> Tensor:
    return torch.as_tensor(transform(image.convert(mode)))


def _open_pixels(pixels: Tensor, index: int) -> Image.Image:
    array = pixels[index].permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")


def _mode(channels: int) -> str:
    """Of Pillow."""
    return "L" if channels == 1 else "RGB"


class _Photos(Dataset[Any]):
    """(epoch, index) -> bytes and label; an error travels as a value, named, not as a traceback."""

    def __init__(self, part: Part, crop: Callable[[Image.Image], Tensor]) -> None:
        self.part, self.crop = part, crop

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int] | PgnasError:
        _, index = place
        assert self.part.open is not None
        try:
            return self.crop(self.part.open(index)), int(self.part.labels[index])
        except Exception as error:
            return _unusable(self.part, index, error)


class _Files(Dataset[Any]):
    """(epoch, index) -> bytes of an image file, or why it cannot be read."""

    def __init__(self, files: Sequence[str], crop: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.crop = files, crop

    def __getitem__(self, place: tuple[int, int]) -> Tensor | str:
        try:
            return self.crop(opened(self.files[place[1]], as_rgb))
        except Exception as error:  # Pillow raises many kinds
            return reason_of(error)


class _Crops(Dataset[Any]):
    """The same of random crops."""

    def __init__(
        self, part: Part, crops: RandomCrops, seed: int, policy: Policy | None = None
    ) -> None:
        self.part, self.crops, self.seed, self.policy = part, crops, seed, policy

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int] | PgnasError:
        epoch, index = place
        dice = Random(derived_seed(self.seed, "augment", epoch, index))
        try:
            if self.part.file is not None:
                pixels = self.crops.of_file(self.part.file(index), dice)
            else:
                assert self.part.open is not None
                pixels = self.crops.of_image(self.part.open(index), dice)
            if self.policy is not None:
                pixels = self.policy(pixels, derived_seed(self.seed, "policy", epoch, index))
        except Exception as error:
            return _unusable(self.part, index, error)
        return pixels, int(self.part.labels[index])


def _unusable(part: Part, index: int, error: Exception) -> PgnasError:
    """Why an image cannot be read, cropped or changed, in one line."""
    if isinstance(error, PgnasError):
        return error
    return PgnasError(f"'{part.keys[index]}' cannot be read ({reason_of(error)})")


def _collate(items: list[Any]) -> tuple[Tensor, Tensor] | PgnasError:
    for item in items:
        if isinstance(item, PgnasError):
            return item
    return _stacked([image for image, _ in items]), torch.tensor([label for _, label in items])


def _stacked(images: list[Tensor]) -> Tensor:
    rows = torch.stack([image.permute(1, 2, 0) for image in images])  # channels last
    return rows.permute(0, 3, 1, 2)


def _readable(items: list[Tensor | str]) -> tuple[Tensor, list[str | None]]:
    good = [item for item in items if isinstance(item, Tensor)]
    reasons = [None if isinstance(item, Tensor) else item for item in items]
    return _stacked(good) if good else torch.empty(0, dtype=torch.uint8), reasons


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole process group: the fit must live to save its state first.

    Whoever reads batches closes the generator, which ends the workers: an ending parent that
    terminated and joined them instead would wait for ever.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _loaded(
    source: Dataset[Any],
    plan: Iterable[list[tuple[int, int]]],
    workers: int,
    *,
    pinned: bool = False,
    collate: Callable[[list[Any]], Any] = _collate,
) -> Generator[Any, None, None]:
    loader: Iterable[Any] = DataLoader(
        source,
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_leave_signals_to_the_parent,
        pin_memory=pinned,
        generator=generator(0, "loader"),
    )
    with StopRequest():  # a half-started loader cannot be ended
        batches = iter(loader)
    try:
        for item in batches:
            if isinstance(item, PgnasError):
                raise item
            yield item
    except Exception as error:
        if workers:  # a traceback would keep them alive, and the end of the process waits
            raise error.with_traceback(None) from None
        raise
    finally:
        del batches  # ends the workers, also when a traceback keeps this frame


def held_out_decoded(data: ImageData, workers: int) -> ImageData:
    """Held-out images are read every epoch and by every candidate: decode them once.

    They lie in memory where they take no more than half of what is free, else in a temporary file
    that the system reads in as they are used.
    """
    part, batch = data.held_out.readable(), 256
    if not len(part):
        raise PgnasError("no held-out image decodes; bring the images back")
    if part.pixels is not None:
        return dataclasses.replace(data, held_out=part)
    pixels = _room_for((len(part), *data.preprocessing.input_shape))
    images = evaluation_images(part, data.preprocessing, batch=batch, workers=workers)
    with closing(images):
        for some in track(pixels.split(batch), "decoding held-out images"):
            some.copy_(next(images))
    return dataclasses.replace(data, held_out=dataclasses.replace(part, pixels=pixels))


def _room_for(shape: tuple[int, ...]) -> Tensor:
    """A uint8 tensor in memory, or in a file without a name, which ends with this process."""
    needed, free = math.prod(shape), free_memory(torch.device("cpu"))
    if needed * launched().local_world_size <= FILLED * free:  # each process has them
        return torch.empty(shape, dtype=torch.uint8)
    place = tempfile.gettempdir()
    note(
        f"held-out images take {large(needed)}B, {large(free)}B of memory are free: they are read"
        f" from a file in '{place}' (TMPDIR names another folder)"
    )
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a full disk would kill the process later
                os.posix_fallocate(file.fileno(), 0, needed)
            mapped: Any = np.memmap(file, np.uint8, "w+", shape=shape)
            return torch.from_numpy(mapped)
    except OSError as error:
        raise PgnasError(
            f"'{place}' has no room for {large(needed)}B of held-out images: {error.strerror}; hold"
            " out fewer with `held_out`, or name another folder with TMPDIR"
        ) from None

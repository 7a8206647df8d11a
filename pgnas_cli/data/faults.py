"""What is wrong or odd in a folder of images, from the facts of a check."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import PgnasError
from ..progress import note
from .checks import Findings
from .dataset import missing
from .listing import Listing, some
from .names import text_of

_LISTED = 100  # damaged files, one line each
_NAMED = 3  # the same in an error


def damaged(
    folder: Path,
    splits: Mapping[str, Listing],
    classes: Sequence[str],
    facts: Mapping[str, Findings],
    skip: bool,
) -> list[str]:
    """Images that do not decode, by class; raises PgnasError for them unless they are skipped."""
    bad = [
        (listing.path(image), classes[int(listing.labels[image])], reason)
        for split, listing in splits.items()
        for image, reason in sorted(facts[split].reasons.items())
    ]
    if not bad:
        return []
    reasons = [f"'{path}' ({reason})" for path, _, reason in bad]
    by_class = collections.Counter(name for _, name, _ in bad)
    counts = some([f"{name} {count}" for name, count in by_class.most_common()], 8)
    images = sum(map(len, splits.values()))
    said = f"{len(bad)} of {images} images"
    if skip:
        names = some([text_of(str(path.relative_to(folder))) for path, *_ in bad], _LISTED)
        return [f"{said} do not decode and are left out (by class: {counts}): {names}"]
    if len(bad) > _NAMED:
        for reason in reasons[:_LISTED]:
            note(f"damaged: {reason}")
    raise PgnasError(
        f"{said} do not decode (by class: {counts}): {some(reasons, _NAMED)}; remove them or add"
        " `skip_corrupt`"
    )


def copies(facts: Findings) -> Tensor | None:  # int64 (images,)
    """For each image the first one of the same bytes; None where all differ."""
    good = facts.good().nonzero()[:, 0]
    digest = facts.digest[good].numpy()
    order = torch.from_numpy(np.lexsort(digest.T))  # stable: copies stay in order
    new = torch.ones(len(order), dtype=torch.bool)
    new[1:] = (facts.digest[good][order].diff(dim=0) != 0).any(1)
    if bool(new.all()):
        return None
    first = torch.arange(len(facts))
    first[good[order]] = good[order[new]][new.cumsum(0) - 1]
    return first


def without_copies(
    train: Listing, test: Listing, classes: Sequence[str], facts: Mapping[str, Findings]
) -> tuple[Tensor | None, list[str]]:
    """Which images of `train` have bytes that no test image has, int64; None: all of them."""

    tested = facts["test"].digest[facts["test"].good()]
    copied = facts["train"].good()
    for half in range(2):  # of the digest: no two halves are alike by chance
        copied &= torch.isin(facts["train"].digest[:, half], tested[:, half])
    if not copied.any():
        return None, []
    kept = (~copied).nonzero()[:, 0]
    for label in missing(train.labels, train.labels[kept]):
        raise PgnasError(
            f"all training images of class '{classes[label]}' are copies of images in"
            f" '{test.folder}'; move new ones there, or remove the folder"
        )
    names = some(train.names.take(copied.nonzero()[:, 0]))
    return kept, [
        f"{int(copied.sum())} training images left out, they are copies of images in"
        f" '{test.folder}': {names}"
    ]


def oddities(
    splits: Mapping[str, Listing], copy_of: Tensor | None, facts: Mapping[str, Findings]
) -> list[str]:
    """What was done to images, and labels that contradict each other."""
    found, train = [], splits["train"]
    turned = sum(int(one.turned.sum()) for one in facts.values())
    if turned:
        images = sum(int(one.good().sum()) for one in facts.values())
        found.append(f"{turned} of {images} images turned upright by their EXIF orientation")
    if copy_of is not None:
        copies = (copy_of != torch.arange(len(copy_of))).nonzero()[:, 0]
        found.append(
            f"{len(copies)} training images are copies of others (same bytes): each stays on its"
            f" picture's side of the held-out cut: {some(train.names.take(copies))}"
        )
        torn = copies[train.labels[copies] != train.labels[copy_of[copies]]]
        if len(torn):
            pairs = [f"'{train.names[int(copy_of[i])]}' and '{train.names[i]}'"
                     for i in torn.tolist()]  # fmt: skip
            found.append(f"{len(torn)} pictures lie in two classes: {some(pairs)}")
    tones = {split: one.brightest.masked_fill(~one.good(), -1) for split, one in facts.items()}
    deep = sum(int((tone >= 0).sum()) for tone in tones.values())
    split = max(
        (split for split in tones if len(tones[split])), key=lambda s: float(tones[s].max())
    )
    most = float(tones[split].max())
    if deep and most < 0.5:
        raise PgnasError(
            f"the {deep} images of more than 8 bits reach {most:.3g} of white at most"
            f" ('{splits[split].path(int(tones[split].argmax()))}'); white is 65535 of integers and"
            " 1 of floats: scale them to it"
        )
    return found


def small_size(listing: Listing, facts: Findings) -> tuple[int | None, list[str]]:
    """Height = width of the images where all are small and alike, else None; remark on a few."""
    good = facts.good()
    sizes = collections.Counter(facts.small[good].numpy().tolist())
    if not sizes:
        return None, []
    (size, count), total = sizes.most_common(1)[0], sum(sizes.values())
    if not size or count == total:
        return size or None, []
    odd = listing.names[int((good & (facts.small != size)).nonzero()[0])]
    return None, [
        f"{count} of {total} images are {size}x{size} pixels, others not ('{odd}'): all are"
        f" resized; `img_size` {size} keeps that size"
    ]

"""Find super-networks by name.

A backbone is one function, named by an entry point of the group `pgnas.backbones`, that returns a
`Backbone` record. Those of this package come through the same door as anybody else's. Listing them
imports none of them.
"""

import dataclasses
import difflib
import inspect
import re
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import PgnasError
from ..fields import check_range
from .backbone import Backbone, Builder, Start

GROUP = "pgnas.backbones"
MOST_PIXELS = 8192  # height = width of an image
LIBRARIES = ("timm", "torchvision")  # entry points for many networks: "timm/NAME"
SMALL_IMAGES = "multibranch-tiny"  # the network of a fit that names none
PHOTOS = "timm/tf_efficientnet_lite0"  # the same on photos, pretrained where that can be had


def backbone_names() -> dict[str, str]:
    """Registered names and the packages that they come from, without importing any."""
    return {
        name: " and ".join(_package(entry) for entry in found)
        for name, found in sorted(_entries().items())
    }


def admit(name: str) -> str:
    """Let "module:function", named on the command line, be built; other names pass through.

    Files that name one are built only where it has been admitted: nothing that a file says is
    imported. In Python, call it once, before `load` and the other functions that read such a file.
    The module is looked for in the working directory as well. Returns `name`.
    """
    if ":" not in name:
        return name
    if not _FUNCTION.fullmatch(name):
        raise PgnasError(f"'{name}' names no function; possible: module:function")
    _ADMITTED.add(name)
    return name


_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_ADMITTED: set[str] = set()  # by the user of this process


def full_name(name: str) -> str:
    """The registered name, "timm/NAME" or "torchvision/NAME" that `name` means.

    A name without a slash is a registered one, else that of a network of timm, else of torchvision.
    Raises PgnasError, with the nearest names, where there is none. Imports none of the libraries.
    """
    library, _, model = name.partition("/")
    known = {one: one for one in _entries() if one not in LIBRARIES}
    if _FUNCTION.fullmatch(name) or name in known or name.endswith(".safetensors"):
        return name
    if model and library in LIBRARIES:
        networks = sorted(library_networks(library))
        if not networks:  # it lies in no files: its builder knows
            return name
        possible = {one: f"{library}/{one}" for one in networks}
        what = f"{library} has no network '{model}'; "
        otherwise = f"it has {', '.join(networks[:2])}, ..."
    else:
        model, possible = name, known
        for one in LIBRARIES:  # the first that has a name keeps it
            possible = {network: f"{one}/{network}" for network in library_networks(one)} | possible
        what = f"no backbone named '{name}'; "
        otherwise = f"known: {', '.join([*known, *(f'{one}/NAME' for one in LIBRARIES)])}"
    network, dot, weights = model.partition(".")
    if network in possible:
        return f"{possible[network]}{dot}{weights}"
    near = [possible[one] for one in difflib.get_close_matches(model, possible, n=3)]
    near = near[: 1 if near and near[0] in known else 3]  # few are registered
    raise PgnasError(what + (f"did you mean {', or '.join(near)}?" if near else otherwise))


@cache
def library_networks(library: str) -> frozenset[str]:
    """Names of the networks that timm or torchvision registers, read in its source.

    Its import takes seconds. None where the library is not there as files.
    """
    spec = find_spec(library)
    places = (spec and spec.submodule_search_locations) or []
    texts = (path.read_text(encoding="utf-8") for place in places
             for path in Path(place, "models").glob("*.py"))  # fmt: skip
    return frozenset(name for text in texts for name in _REGISTERED.findall(text))


_REGISTERED = re.compile(r"^@register_model(?:\(.*\))?\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


def load_backbone(
    name: str,
    *,
    classes: int,
    channels: int | None = None,  # of the images; None: three, or what the backbone insists on;
    # a backbone may take one channel whatever they have, they are read as grey then
    size: int | None = None,  # pixels; None: the backbone's own
    options: dict[str, Any] | None = None,
    start: Start = Start(),  # noqa: B008 - frozen
) -> Backbone:
    """Build the backbone that `name` means; "timm/NAME" goes to the entry point "timm".

    The initial weights are those that `start` names. Inflation, where the backbone asks for it, is
    still to be done (inflate.py). Raises PgnasError for an unknown name (with the nearest known
    one), for a backbone whose package does not import, for one that takes other images than
    square ones of `channels` or grey, and for weights that do not fit.
    """
    if size is not None:
        check_range("img_size", size, 1, MOST_PIXELS)
    name = full_name(name)
    entry, model = _entry(name)
    called = f"backbone '{name}' (from {_package(entry)}"
    build = _builder(entry, name, called)
    given = dict(options or {})
    for option in set(given) & {"pretrained", "classes", "channels", "size", "model"}:
        raise PgnasError(f"a backbone has no option '{option}' of its own")
    if model:
        given["model"] = model
    if start.pretrained:
        if start.weights is not None:
            raise PgnasError("`pretrained` and `weights` are mutually exclusive; give one")
        if "pretrained" not in inspect.signature(build).parameters:
            raise PgnasError(f"'{name}' has no pretrained weights to fetch; give `weights`, a file")
        given["pretrained"] = True
    from ..seeds import derived_seed, seeded_globals  # imports torch, as `build` just did
    from .weights import load_weights_
    from .wrappers import unwrapped

    try:
        with seeded_globals(derived_seed(start.seed, "initial weights")):
            backbone = build(classes=classes, channels=channels or 3, size=size, **given)
    except PgnasError:
        raise
    except Exception as error:  # a stranger's code may fail in any way
        raise PgnasError(f"{called}) cannot be built: {type(error).__name__}: {error}") from None
    _check(backbone, f"{called})", channels)
    network = unwrapped(backbone.network, f"{called})")
    backbone = dataclasses.replace(backbone, name=name, network=network)
    if start.weights is not None:
        replaced = load_weights_(backbone.network, start.weights, backbone.heads)
        backbone = with_replaced(backbone, replaced)
    if start.pretrained and not all(
        bool(value.isfinite().all()) for value in network.state_dict().values()
    ):
        raise PgnasError(
            f"the pretrained weights of '{name}' are not finite; remove them from the cache of timm"
            " or torchvision, or give `weights`, a file"
        )
    layers = dict(network.named_modules())
    unknown = [head for head in backbone.new_heads if head not in layers]
    if unknown:
        raise PgnasError(f"{called}) has no layer '{unknown[0]}', one of its new_heads")
    return backbone


def _check(backbone: Any, called: str, channels: int | None) -> None:
    """Refuse what is no backbone, or takes images that are not read so: one channel always is."""
    if not isinstance(backbone, Backbone):
        raise PgnasError(
            f"{called} gives a {type(backbone).__name__}; a pgnas_cli.registry.Backbone is wanted"
        )
    shape = tuple(backbone.input_shape)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise PgnasError(
            f"{called} takes images of {'x'.join(map(str, shape))}; possible: (channels, size,"
            " size), square images only"
        )
    if channels is not None and shape[0] not in (channels, 1):
        raise PgnasError(
            f"{called} takes images of {_channels(shape[0])}, here are {_channels(channels)}; let"
            " it build its first layer for its argument 'channels'"
        )


def _channels(number: int) -> str:
    return f"{number} channel{'s' * (number != 1)}"


def _entry(name: str) -> tuple[EntryPoint, str]:
    """The entry point that `name` means, and the model's name behind "timm/", "torchvision/"."""
    entries = {**_entries(), **{own: [EntryPoint(own, own, GROUP)] for own in _ADMITTED}}
    if _FUNCTION.fullmatch(name) and name not in _ADMITTED:
        raise PgnasError(
            f"backbone '{name}' is a function that is not installed; if it is yours, name it again:"
            f" `backbone` {name}, or in Python pgnas_cli.admit('{name}')"
        )
    entry_name, _, model = name.partition("/")
    entry, *others = entries[entry_name]
    if others:
        raise PgnasError(
            f"two packages offer a backbone named '{entry_name}': {_package(entry)} and"
            f" {_package(others[0])}; remove one of them"
        )
    return entry, model


def _builder(entry: EntryPoint, name: str, called: str) -> Builder:
    """Import the function that an entry point names."""
    sought = sys.path
    try:
        if name in _ADMITTED:
            sys.path = [str(Path.cwd()), *sought]
        build: Builder = entry.load()
    except (Exception, SystemExit) as error:  # a stranger's module may fail in any way
        advice = "mend it" if name in _ADMITTED else "reinstall or remove that package"
        raise PgnasError(
            f"{called}, {entry.value}) does not load: {type(error).__name__}: {error}; {advice}"
        ) from None
    finally:
        sys.path = sought
    if not callable(build):
        raise PgnasError(f"{called}): {entry.value} is not a function that builds one")
    return build


def with_replaced(backbone: Backbone, heads: dict[str, str]) -> Backbone:
    """The same record of a network in which `heads` were replaced, with a remark on each."""
    return dataclasses.replace(
        backbone, remarks=(*backbone.remarks, *heads.values()), new_heads=tuple(heads)
    )


def _entries() -> dict[str, list[EntryPoint]]:
    """Entry points by name; several where packages offer the same name."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        found.setdefault(entry.name, {})[_package(entry), entry.value] = entry
    return {name: list(same.values()) for name, same in found.items()}


def _package(entry: EntryPoint) -> str:
    if entry.name in _ADMITTED:
        return "the command line"
    return entry.dist.name if entry.dist is not None else "an unknown package"

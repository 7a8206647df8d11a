"""An exported network, loaded: the module itself, and what it says of a photo."""

from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from ..data import evaluation_image
from ..errors import PgnasError
from ..fields import check_range, taken
from ..graph import evaluating
from ..naming import NETWORK_FILES, is_onnx
from ..slimming import Layout
from .network import NetworkInfo, read_network
from .onnx import read_onnx

# What `export` can write and `evaluate` can read, by the ending of the file.
READERS = dict(zip(NETWORK_FILES, (read_network, read_onnx), strict=True))
TOP = 5  # classes that `predict` gives


class Classifier(nn.Module):
    """Mixed into the class of a loaded network: its class names, its images, predictions.

    Names of parameters, copies and forward stay those of the network.
    """

    plain: type[nn.Module]  # the network's own class
    info: NetworkInfo
    classes: tuple[str, ...]  # in the order of the logits
    num_classes: int
    pretrained_cfg: dict[str, Any]  # of the images, with the keys of timm

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.plain,), self.__dict__.copy()

    def preprocess(self, image: str | Path | Image.Image) -> Tensor:
        """An image as the network takes it, float32 (1, channels, height, width).

        Decoded, resized, cropped and normalised as `evaluate` does. Raises PgnasError where it does
        not decode.
        """
        images = self.info.supernet.preprocessing
        return images.normalised(evaluation_image(image, images))

    @torch.inference_mode()
    def predict(self, image: str | Path | Image.Image, top: int = TOP) -> list[tuple[str, float]]:
        """The `top` likeliest classes and their probabilities in [0, 1], in evaluation mode.

        Raises PgnasError for an image that does not decode, and without a classifier.
        """
        top = taken("top", int, top)
        if not self.classes:
            raise PgnasError("the network has no classifier; give it one with `reset_classifier`")
        like = next(self.parameters(), torch.empty(0))
        with evaluating(self):
            logits = self(self.preprocess(image).to(like))
        ((classes, probabilities),) = likeliest(likelihoods(logits), self.classes, top)
        return list(zip(classes, probabilities, strict=True))


class _TimmClassifier(Classifier):
    """The same of a network of timm."""

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with a new one, untrained; 0 classes: none, features come out."""
        network = cast(Any, self)
        own = getattr(network, "global_pool", None)  # its name, or a layer that knows it
        if global_pool not in (None, getattr(own, "pool_type", own)):
            raise PgnasError("a loaded network keeps its pooling; leave out `global_pool`")
        check_range("num_classes", taken("num_classes", int, num_classes), 0)
        old = network.get_classifier()
        path = next((path for path, module in self.named_modules() if module is old), None)
        if path is None:  # two, for distillation
            raise PgnasError("a network with more than one classifier keeps them")
        like = next(self.parameters())
        at: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        new: nn.Module = nn.Identity()
        if num_classes and isinstance(old, nn.Conv2d):
            new = nn.Conv2d(network.head_hidden_size, num_classes, 1, **at)
        elif num_classes:
            new = nn.Linear(network.head_hidden_size, num_classes, **at)
        self.set_submodule(path, new)
        self.num_classes, self.classes = num_classes, tuple(map(str, range(num_classes)))
        self.pretrained_cfg = {**self.pretrained_cfg, "num_classes": num_classes}


def load(path: str | Path, layout: Layout = "small") -> Classifier:
    """The exported network in `path`, in evaluation mode; needs neither run nor data.

    Layout "small" multiplies only what is kept; "fast" is arranged for inference in torch, with
    batch-norm folded into the layers before it, "onnx" for ONNX Runtime. Same outputs. The
    attribute `info` is its `NetworkInfo`. A network with attributes of its own called `classes`,
    `preprocess` or `predict` keeps them, and gets none of `Classifier`. An ONNX file has the layout
    that it was written in; it runs on the CPU, in ONNX Runtime.
    """
    path = Path(path)
    if is_onnx(path) and layout != "small":
        raise PgnasError(f"'{path}' has its layout already; leave out `layout`")
    network, info = read_onnx(path) if is_onnx(path) else read_network(path, layout)
    return as_classifier(network, info)


def as_classifier(network: nn.Module, info: NetworkInfo) -> Classifier:
    """`network` as a Classifier, in place, unless it has names of it."""
    found: Any = network
    found.info = info
    if any(hasattr(network, name) for name in ("classes", "preprocess", "predict")):
        return cast(Classifier, network)
    found.__class__ = _classifier_class(type(network))  # type: ignore[arg-type]
    found.classes, found.num_classes = info.supernet.classes, len(info.supernet.classes)
    found.pretrained_cfg = _timm_config(network, info)
    if isinstance(network, _TimmClassifier):
        found.default_cfg = found.pretrained_cfg
        with torch.no_grad():
            features = found.forward_features(torch.zeros(1, *found.pretrained_cfg["input_size"]))
            hidden = found.forward_head(features, pre_logits=True)
        last = getattr(found, "output_fmt", "NCHW") == "NHWC"
        found.num_features = features.shape[-1 if last else 1]
        found.head_hidden_size = hidden.shape[1]
    return cast(Classifier, network)


def likelihoods(logits: Tensor) -> Tensor:
    """Probabilities, float64 on the CPU, as `logits` in shape.

    Raises PgnasError where one is not finite.
    """
    if not logits.isfinite().all():
        raise PgnasError("the network computes logits that are not finite: NaN or infinity")
    return logits.cpu().double().softmax(1)


def likeliest(
    probabilities: Tensor,  # float (images, classes)
    classes: tuple[str, ...],
    top: int,
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """For each image the `top` likeliest classes, and their probabilities; of equals the first."""
    check_range("top", top, 1)
    values, places = probabilities.sort(dim=1, descending=True, stable=True)
    return [
        (tuple(classes[i] for i in where), tuple(row))
        for where, row in zip(places[:, :top].tolist(), values[:, :top].tolist(), strict=True)
    ]


@cache
def _classifier_class(base: type[nn.Module]) -> type[nn.Module]:
    """`base` as a Classifier; one class for each."""
    mixed = _TimmClassifier if base.__module__.startswith("timm.models.") else Classifier
    inner = {"__module__": __name__, "__annotations__": {}, "plain": base}  # torch.jit reads them
    return type(base.__name__, (mixed, base), inner)


def _blank(base: type[nn.Module]) -> nn.Module:
    """A loaded network without content, for copies to fill."""
    kind = _classifier_class(base)  # type: ignore[arg-type]
    return kind.__new__(kind)


def _timm_config(network: nn.Module, info: NetworkInfo) -> dict[str, Any]:
    """`pretrained_cfg` of timm, from which it makes the transform of the network's images."""
    images, own = info.supernet.preprocessing, getattr(network, "pretrained_cfg", None)
    kept = ("architecture", "first_conv", "classifier")
    named = {k: own[k] for k in kept if k in own} if isinstance(own, dict) else {}
    return {
        **named, "input_size": images.input_shape, "mean": images.mean, "std": images.std,
        "interpolation": images.interpolation, "crop_pct": images.crop, "crop_mode": "center",
        "num_classes": len(info.supernet.classes),
    }  # fmt: skip

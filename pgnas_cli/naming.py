"""Names of data sets, devices and files that mean something, and bounds of an export.

Imports no torch: a command refuses at once what means nothing.
"""

import re
from pathlib import Path

from .errors import PgnasError
from .fields import check_choice

# Data sets that need no prefix, and torchvision's folder of each. ImageNet's archives are not
# unpacked.
PLAIN_DATA = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "imagenet": ""}
# timm's kinds of names of data sets, and the package that each needs.
TIMM_DATA = {
    "torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "wds": "webdataset",
    "tfds": "tensorflow_datasets",
}  # fmt: skip
NETWORK_FILES = (".safetensors", ".onnx")  # endings of exported networks
OPSETS = (18, 23)  # of an ONNX file, that torch's exporter can write
ROUND_TO = (1, 1024)  # multiples of channel counts
RUNTIMES = ("torch", "onnxruntime")  # that networks are timed in
PRECISIONS = ("float32", "bfloat16")  # that layers compute in
POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")  # of AutoAugment
MOST_TIMED = 4096  # images of a forward that `evaluate` times
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_data_name(name: str) -> None:
    """Raise PgnasError where `name` is neither a folder nor a data set that is known by name."""
    timms = "/" in name and name.split("/")[0] in TIMM_DATA
    if not (name == "digits" or name in PLAIN_DATA or timms or Path(name).is_dir()):
        raise PgnasError(
            f"no data set '{name}'; possible: digits, a folder with train/<class>/ and val/<class>/"
            f", {', '.join(PLAIN_DATA)}, or a timm name such as torch/mnist"
        )


def check_forward(runtime: str, precision: str) -> None:
    """Raise PgnasError for a forward that is not timed."""
    check_choice("time_runtime", runtime, RUNTIMES)
    check_choice("time_precision", precision, PRECISIONS)
    if (runtime, precision) == ("onnxruntime", "bfloat16"):
        raise PgnasError(
            "ONNX Runtime is timed in float32 only; leave out `time_precision`, or choose"
            " `time_runtime` torch"
        )


def check_policy_name(text: str) -> None:
    """Raise PgnasError for a policy of timm's AutoAugment that does not begin like one."""
    if text and text.partition("-")[0] not in POLICIES:
        raise no_policy(text)


def no_policy(text: str) -> PgnasError:
    return PgnasError(
        f"`aa` '{text}' is not known; possible: rand-m9-mstd0.5-inc1, augmix-m3-w3, original, v0 or"
        " 3a, as for timm"
    )


def is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


def check_precision(precision: str, path: Path) -> None:
    """Raise PgnasError for what layers do not compute in; an ONNX file knows float32 alone."""
    check_choice("precision", precision, PRECISIONS)
    if precision != "float32" and is_onnx(path):
        raise PgnasError(f"'{path}' computes in float32; leave out `precision`")


def no_table(path: str | Path) -> PgnasError:
    return PgnasError(f"no file '{path}'; make one with pgnas profile")


def no_runs(path: Path) -> PgnasError:
    return PgnasError(f"no file '{path}'; the script in a pack of profile writes it")


def check_device_name(name: str) -> None:
    """Raise PgnasError for what is no name of a device; whether it is here shows later."""
    if not _DEVICE.fullmatch(name):
        raise no_device(name)


def no_device(name: object) -> PgnasError:
    return PgnasError(f"no device '{name}' here; possible: cpu, or auto")

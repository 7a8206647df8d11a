"""ONNX files, checked by running them.

Exporters have written wrong files without a word, so the file is run by ONNX Runtime on real
held-out images at batch 1 and 8 and compared with the network; one that differs does not stay.
"""

import io
import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PgnasError
from ..storage import from_json, parsed, to_json, versioned, write_with
from .network import NETWORK, Slim

TOLERANCE = 1e-4  # of the largest logit

BATCHES = (1, 8)

OPSETS = (11, 23)  # that one of torch's exporters can write


def write_onnx(path: Path, network: nn.Module, images: Tensor, about: Slim, *, opset: int) -> None:
    """Store `network` with a dynamic batch; `images` are real ones, float (images, ...).

    Raises PgnasError where a package is missing, the exporters fail, or a file's logits differ
    from the network's, with how much.
    """
    _packages()
    network = network.cpu().eval()
    images = images.detach().cpu().contiguous()
    failures = []
    for plain, failure in _attempts(network, images, opset):
        if plain is None:
            failures.append(failure)
            continue
        try:
            content = _described(plain, about)
            difference = _difference(network, images, content)
        except Exception as error:  # the runtime raises many kinds
            failures.append(f"{failure}: {_one_line(error)}")
            continue
        if difference <= TOLERANCE:
            write_with(path, partial(_store, content))
            return
        failures.append(f"{failure}: logits differ by {difference:.1e} of the largest")
    raise PgnasError(f"'{path}' was not written: {'; '.join(failures)}; try another --opset")


def _store(content: bytes, part: Path) -> None:
    part.write_bytes(content)


def in_onnx(network: nn.Module, images: Tensor) -> bytes:
    """`network` as an ONNX file in memory, not checked: for comparing times."""
    _packages()
    for content, _ in _attempts(network.cpu().eval(), images, 18):
        if content is not None:
            return content
    raise PgnasError(f"{type(network).__name__} cannot be written as ONNX by torch's exporters")


def _attempts(network: nn.Module, images: Tensor, opset: int) -> Iterator[tuple[bytes | None, str]]:
    """What each of torch's exporters makes of it, or why nothing; and the exporter's name."""
    for modern in (True, False):
        if not (18 if modern else 7) <= opset <= (23 if modern else 20):
            continue  # the older exporter prints what it fails on
        name = "torch.export's exporter" if modern else "the TorchScript exporter"
        try:
            yield _exported(network, images, opset, modern=modern), name
        except Exception as error:  # exporters raise many kinds
            yield None, f"{name}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _packages() -> Any:
    try:
        import onnx  # noqa: F401 - used below
        import onnxruntime
        import onnxscript  # noqa: F401 - used by torch's exporter
    except ImportError as error:
        raise PgnasError(
            f"ONNX files need the package '{error.name}'; install it with pip install 'pgnas[onnx]'"
        ) from None
    return onnxruntime


def _exported(network: nn.Module, images: Tensor, opset: int, *, modern: bool) -> bytes:
    options: dict[str, Any] = {"dynamic_axes": {"images": {0: "batch"}, "logits": {0: "batch"}}}
    if modern:
        options = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # the exporters' remarks on their own internals
        target = Path(folder) / "network.onnx"
        torch.onnx.export(
            network, (images[:2],), target, dynamo=modern, opset_version=opset,
            input_names=["images"], output_names=["logits"], verbose=False, **options,
        )  # fmt: skip
        content = target.read_bytes()
    import onnx

    found = onnx.load_from_string(content).opset_import[0].version
    if found != opset:
        raise PgnasError(f"it gives opset {found}, not {opset}")
    return content


def _described(content: bytes, about: Slim) -> bytes:
    """The same file with what it is about in its metadata, as in a safetensors file."""
    import onnx

    model = onnx.load_from_string(content)
    text = json.dumps({**versioned(NETWORK), **to_json(about)}, sort_keys=True)
    onnx.helper.set_model_props(model, {"pgnas": text})
    return bytes(model.SerializeToString(deterministic=True))


def _difference(network: nn.Module, images: Tensor, content: bytes) -> float:
    """Largest difference of logits as a share of the largest logit."""
    runtime = OnnxNetwork(content)
    worst = 0.0
    for batch in BATCHES:
        for part in images.split(batch):
            with torch.no_grad():
                expected = network(part)
            scale = float(expected.abs().max()) or 1.0
            difference = float((runtime(part) - expected).abs().max()) / scale
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return worst


class OnnxNetwork(nn.Module):
    """An ONNX file behind the face of a network, run by ONNX Runtime on the CPU."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        runtime = _packages()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def forward(self, images: Tensor) -> Tensor:
        given = {self.input: images.detach().cpu().contiguous().numpy()}
        return torch.from_numpy(self.session.run(None, given)[0])


def read_onnx(path: Path) -> tuple[nn.Module, Slim]:
    """An ONNX file that `write_onnx` wrote, ready to run, and what it is about."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PgnasError(f"'{path}' cannot be read: {error.strerror}") from None
    try:
        network = OnnxNetwork(content)
    except PgnasError:
        raise
    except Exception as error:  # ONNX Runtime raises kinds of its own
        cause = " ".join(str(error).split())[:200]
        raise PgnasError(f"'{path}' is no ONNX file that ONNX Runtime takes ({cause})") from None
    text = network.session.get_modelmeta().custom_metadata_map.get("pgnas")
    fields = {k: v for k, v in parsed(path, text, NETWORK).items() if k not in versioned(NETWORK)}
    return network.eval(), from_json(Slim, fields, path)

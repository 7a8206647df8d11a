"""ONNX files, checked by running them.

Exporters have written wrong files without a warning, so the file is run by ONNX Runtime on real
held-out images at batch 1 and 8 and compared with the network; one that differs is not written.
"""

import io
import json
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PgnasError, one_line
from ..slimming import difference
from ..storage import from_json, to_json
from ..tensors import parsed, versioned
from .network import NETWORK, NetworkInfo

TOLERANCE = 1e-4  # of the largest logit
BATCHES = (1, 8)
OPSETS = (18, 23)  # that torch's exporter can write


def onnx_content(
    path: Path, network: nn.Module, images: Tensor, about: NetworkInfo, *, opset: int
) -> bytes:
    """`network` as an ONNX file with a dynamic batch; `images` are real ones, float (images, ...).

    Raises PgnasError, naming the `path` that is not written, where a package is missing, the
    exporter fails, or the file's logits differ from the network's, with how much.
    """
    network = network.cpu().eval()
    images = images.detach().cpu().contiguous()
    try:
        content = _described(in_onnx(network, images, opset), about)
        differs = _difference(network, images, content)
    except PgnasError:
        raise
    except Exception as error:  # exporter and runtime raise many kinds
        raise PgnasError(f"'{path}' was not written: {one_line(error)}") from None
    if not differs <= TOLERANCE:
        raise PgnasError(
            f"'{path}' was not written: its logits differ by {differs:.1e} of the largest"
            f" (allowed {TOLERANCE:.0e}), please report this"
        )
    return content


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


def in_onnx(network: nn.Module, images: Tensor, opset: int = OPSETS[0]) -> bytes:
    """`network` as an ONNX file in memory, not checked."""
    _packages()
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
        target = Path(folder) / "network.onnx"
        torch.onnx.export(
            network, (images[:2],), target, dynamo=True, opset_version=opset, external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["images"],
            output_names=["logits"], verbose=False,
        )  # fmt: skip
        content = target.read_bytes()
    import onnx

    found = onnx.load_from_string(content).opset_import[0].version
    if found != opset:
        raise PgnasError(f"torch's exporter gives opset {found}, not {opset}")
    return content


def _described(content: bytes, about: NetworkInfo) -> bytes:
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
            worst = max(worst, difference(runtime(part), expected))
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


def read_onnx(path: Path) -> tuple[nn.Module, NetworkInfo]:
    """An ONNX file that `export` wrote, ready to run, and what it is about."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PgnasError(f"'{path}' cannot be read: {error.strerror}") from None
    try:
        network = OnnxNetwork(content)
    except PgnasError:
        raise
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise PgnasError(
            f"'{path}' is not an ONNX file that ONNX Runtime takes ({one_line(error)})"
        ) from None
    text = network.session.get_modelmeta().custom_metadata_map.get("pgnas")
    fields = {k: v for k, v in parsed(path, text, NETWORK).items() if k not in versioned(NETWORK)}
    return network.eval(), from_json(NetworkInfo, fields, path)

"""ONNX files, checked by running them.

Exporters have written wrong files without a warning, so the file is run by ONNX Runtime on real
held-out images at batch 1 and 8 and compared with the network; one that differs is not written.
Where the image size is dynamic, this is repeated at two other sizes.

The metadata holds what a safetensors file says of itself under the key `pgnas`, and for readers
without pgnas, as JSON: `classes`, in the order of the logits; `mean` and `std` per channel, of
values scaled to [0, 1]; `size` in pixels; `crop`, the share of the resized image that the centre
crop keeps. `interpolation` is its name, bilinear for one.
"""

import io
import json
import tempfile
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PgnasError, one_line
from ..slimming import agree, difference
from ..storage import from_json, to_json
from ..tensors import parsed, versioned
from .network import NETWORK, NetworkInfo

TOLERANCE = 1e-4  # of the largest logit
BATCHES = (1, 8)
OPSETS = (18, 23)  # that torch's exporter can write
LARGER = 32  # pixels, by which another size is larger


def onnx_content(
    path: Path,
    network: nn.Module,
    images: Tensor,  # real ones, float (images, channels, height, width)
    about: NetworkInfo,
    *,
    opset: int,
    dynamic_size: bool = False,
) -> bytes:
    """`network` as an ONNX file with a dynamic batch, and a dynamic height and width if asked.

    Raises PgnasError, naming the `path` that is not written, where a package is missing, the
    exporter fails, or the file's logits differ from the network's, with how much.
    """
    network = network.cpu().eval()
    images = images.detach().cpu().contiguous()
    samples = [images, *(_other_sizes(network, images) if dynamic_size else ())]
    try:
        content = _described(in_onnx(network, images, opset, dynamic_size), about)
        differs = max(_difference(network, some, content) for some in samples)
    except PgnasError:
        raise
    except Exception as error:  # exporter and runtime raise many kinds
        advice = "; leave out `dynamic_size`" if dynamic_size else ""
        raise PgnasError(f"'{path}' was not written: {one_line(error)}{advice}") from None
    if not agree(differs, TOLERANCE, network, samples):
        raise PgnasError(
            f"'{path}' was not written: its logits differ by {differs:.1e} of the largest"
            f" (allowed {TOLERANCE:.0e}), please report this"
        )
    return content


def _other_sizes(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The first `images` larger, and oblong; PgnasError where the network takes no other size."""
    height, width = images.shape[2:]
    sizes = [(height + LARGER, width + LARGER), (height + LARGER, width)]
    found = [F.interpolate(images[: BATCHES[-1]], size, mode="bilinear") for size in sizes]
    try:
        with torch.no_grad():
            for some in found:
                network(some)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise PgnasError(
            f"this network takes images of {height}x{width} only ({one_line(error)}); leave out"
            " `dynamic_size`"
        ) from None
    return found


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


def in_onnx(
    network: nn.Module, images: Tensor, opset: int = OPSETS[0], dynamic_size: bool = False
) -> bytes:
    """`network` as an ONNX file in memory, not checked."""
    _packages()
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic_size:
        axes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # the exporter's remarks on its own internals
        target = Path(folder) / "network.onnx"
        torch.onnx.export(
            network, (images[:2],), target, dynamo=True, opset_version=opset, external_data=False,
            dynamic_shapes=(axes,), input_names=["images"],
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
    own = {**versioned(NETWORK), **to_json(about)}
    images = about.supernet.preprocessing
    plain = {"classes": about.supernet.classes, "mean": images.mean, "std": images.std,
             "size": images.size, "crop": images.crop}  # fmt: skip
    texts = {
        key: json.dumps(value, sort_keys=True) for key, value in {"pgnas": own, **plain}.items()
    }
    onnx.helper.set_model_props(model, {**texts, "interpolation": images.interpolation})
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

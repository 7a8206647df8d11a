"""ONNX files, checked by running them.

Exporters have written wrong files without a warning, so the file is run by ONNX Runtime on real
held-out images at batch 1 and 8 and compared with the network; one that differs is not written.
Where the image size is dynamic, this is repeated at two other sizes.

The metadata holds what a safetensors file says of itself under the key `pgnas`, and for readers
without pgnas, as JSON: `classes`, in the order of the logits; `mean` and `std` per channel, of
values scaled to [0, 1]; `size` in pixels; `crop`, the share of the resized image that the centre
crop keeps. `interpolation` is its name, bilinear for one.
"""

import copy
import io
import json
import math
import tempfile
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PgnasError, one_line
from ..naming import OPSETS
from ..slimming import agree, difference
from ..storage import read_bytes, to_json
from ..tensors import parsed, versioned
from .network import NETWORK, NetworkInfo, about_of

TOLERANCE = 1e-4  # of the largest logit
BATCHES = (1, 8)
MOST_CONTENT = 2**31  # bytes of a file, a limit of the format
MOST_VALUES = 2**28  # of one tensor for one image, in a file that is read
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


def onnx_installed() -> bool:
    """Whether the packages are there that write and run ONNX files."""
    return all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


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


def quick_onnx(network: nn.Module, images: Tensor) -> bytes:
    """`network` as an ONNX file for as many images and pixels as these have, to be timed.

    By torch's older exporter, in a twentieth of the time; by the newer one where that fails.
    """
    _packages()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")  # that it is the older one
            target = Path(folder) / "network.onnx"
            torch.onnx.export(
                network, (images,), target, dynamo=False, opset_version=OPSETS[0],
                input_names=["images"], output_names=["logits"],
            )  # fmt: skip
            return target.read_bytes()
    except Exception:  # it raises many kinds
        return in_onnx(network, images)


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
        # What fails is raised; names in a file stay off the terminal.
        options.log_severity_level = 4
        self.session = runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxNetwork":
        found = copy.copy(self)
        found.__dict__ = {
            key: value if key in ("session",) else copy.deepcopy(value, memo)
            for key, value in self.__dict__.items()
        }
        return found

    def forward(self, images: Tensor) -> Tensor:
        given = {self.input: images.detach().cpu().contiguous().numpy()}
        return torch.from_numpy(self.session.run(None, given)[0])


def read_onnx(path: Path) -> tuple[nn.Module, NetworkInfo]:
    """An ONNX file that `export` wrote, ready to run, and what it is about."""
    try:
        content = read_bytes(path, MOST_CONTENT)
    except OSError as error:
        raise PgnasError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise _not_taken(path, error) from None
    _packages()
    import onnx

    try:
        model = onnx.load_from_string(content)
        _check_graph(model)
    except Exception as error:  # protobuf and onnx raise kinds of their own
        raise _not_taken(path, error) from None
    text = {prop.key: prop.value for prop in model.metadata_props}.get("pgnas")
    about = about_of(parsed(path, text, NETWORK), path)
    try:
        network = OnnxNetwork(content)
        shape = about.supernet.preprocessing.input_shape
        logits = network(torch.zeros(1, *shape))
        if tuple(logits.shape) != (1, len(about.supernet.classes)):
            raise ValueError(f"it gives {tuple(logits.shape)} logits for one image")
    except PgnasError:
        raise
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise _not_taken(path, error) from None
    return network.eval(), about


def _not_taken(path: Path, error: Exception) -> PgnasError:
    return PgnasError(f"'{path}' is not an ONNX file that ONNX Runtime takes ({one_line(error)})")


def _check_graph(model: Any) -> None:
    """ValueError for what `export` never writes: tensors in other files, steps of other packages,
    loops, and tensors above `MOST_VALUES`, as far as their shapes are known."""
    import onnx

    if model.functions or any(node.domain for node in model.graph.node):
        raise ValueError("it has steps of another package")
    attributes = [a for node in model.graph.node for a in node.attribute]
    tensors = [*model.graph.initializer, *(t for a in attributes for t in (a.t, *a.tensors))]
    if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in tensors):
        raise ValueError("its tensors lie in other files")
    if any(a.g.node or a.graphs for a in attributes):
        raise ValueError("it has loops or branches")
    onnx.checker.check_model(model)  # looks for such files, so that it comes behind
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if math.prod(max(1, dim.dim_value) for dim in dims) > MOST_VALUES:
            raise ValueError(f"tensor {value.name} has too many values")

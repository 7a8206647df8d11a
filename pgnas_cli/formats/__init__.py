"""Exported networks on disk."""

from ..naming import NETWORK_FILES
from .network import (
    NetworkInfo,
    checked_slim,
    load,
    origin,
    read_network,
    size_fields,
    write_network,
)
from .onnx import OnnxNetwork, in_onnx, onnx_content, read_onnx

# What `export` can write and `evaluate` can read, by the ending of the file.
READERS = dict(zip(NETWORK_FILES, (read_network, read_onnx), strict=True))

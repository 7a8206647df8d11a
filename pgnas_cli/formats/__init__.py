"""Exported networks on disk."""

from .network import (
    NetworkInfo,
    checked_slim,
    load,
    origin,
    read_network,
    size_fields,
    write_network,
)
from .onnx import OPSETS, OnnxNetwork, in_onnx, onnx_content, quick_onnx, read_onnx

# What `export` can write and `evaluate` can read, by the ending of the file.
READERS = {".safetensors": read_network, ".onnx": read_onnx}

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
from .onnx import OPSETS, OnnxNetwork, in_onnx, onnx_content, read_onnx

"""Exported networks on disk."""

from .classifier import READERS, TOP, Classifier, likeliest, likelihoods, load
from .network import (
    NetworkInfo,
    PredictedTime,
    checked_slim,
    origin,
    read_network,
    size_fields,
    write_network,
)
from .onnx import OnnxNetwork, in_onnx, onnx_content, onnx_installed, quick_onnx, read_onnx

"""Exported networks on disk."""

from .network import Slim, checked_slim, load, origin, read_network, slim_record, write_network
from .onnx import OPSETS, OnnxNetwork, in_onnx, read_onnx, write_onnx

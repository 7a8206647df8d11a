"""What a network computes: its forward traced, each step as a fact about channels."""

from .convolutions import plain_shell, plain_twin, window_of
from .nodes import Graph, Node
from .operations import ChannelSlice, OperationGate
from .tracing import contiguous_, evaluating, in_mode, trace

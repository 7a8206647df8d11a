"""Cut a candidate out of a super-network: smaller tensors, same outputs."""

from .cut import Layout, arranged, largest_difference, plan, slim, ungated_copy
from .layers import Cut, reshape_
from .wiring import Wiring, spread, wire

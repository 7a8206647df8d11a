"""Cut a candidate out of a super-network: smaller tensors, same outputs."""

from .arrange import BLOCK, Layout, arranged, filled
from .cut import (
    agree,
    difference,
    largest_difference,
    plan,
    slim,
    ungated_copy,
)
from .layers import Constant, Cut, reshape_
from .remainder import Place, Remainder, everything, remainder, stored
from .wiring import Wiring, spread, wire

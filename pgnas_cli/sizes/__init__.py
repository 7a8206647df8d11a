"""Parameters, MACs and time of candidates: exact, in expectation, and as a target."""

from .exact import (
    KINDS,
    ROWS,
    Sizes,
    count,
    joined,
    parameter_count,
    whole_macs,
    whole_sizes,
)
from .expected import ExpectedSize
from .target import Target, budgets_of, target_of

"""Parameters and MACs of candidates: exact, in expectation, and as a target."""

from .exact import ROWS, Sizes, count, joined, parameter_count, whole_macs
from .expected import ExpectedSize
from .target import KINDS, Target, budgets_of, parsed_size, target_of, whole_sizes

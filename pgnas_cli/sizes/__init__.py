"""Parameters and multiply-adds of candidates: exact, in expectation, and as a target."""

from .exact import Sizes, count, joined, parameter_count, whole_macs
from .expected import ExpectedSize
from .target import Target, budgets_of, target_of

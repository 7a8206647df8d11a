"""Measure how long the steps of a network take on this device, at many widths."""

from .tables import (
    described,
    forward_of,
    gated_backbone,
    profiled,
    random_candidates,
    read_table,
    samples,
    table_in,
    table_of,
    table_of_runs,
    tell,
    text_of,
    write_pack,
    write_table,
)
from .torch_times import Stopwatch

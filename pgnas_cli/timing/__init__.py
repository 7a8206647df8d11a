"""What a candidate costs in time on one device: a table of measured steps, and its predictions."""

from .table import (
    COEFFICIENTS,
    LONGEST_STEP,
    SHORTEST,
    Forward,
    StepTime,
    TimeTable,
    check_table,
    fingerprint,
    fitted,
    milliseconds,
    step_time,
    terms,
    time_table,
    timed_by,
)
from .work import Sample, Work, built_work, planned_work

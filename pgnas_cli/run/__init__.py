"""A run directory: its files, the options it was started with, its history.

This face imports no torch; the fitted super-network is imported from `run.posterior`.
"""

from .directory import MOST_CANDIDATES, RUNS, Run, newest_run, run_at
from .history import Command, commands_of, now, remember
from .lock import last_written, writing
from .overview import RunOverview, overviews
from .settings import (
    FitSettings,
    check_named,
    check_recipe,
    keep_skipping,
    read_settings,
    run_name,
    run_to_fit,
    settings_of,
    with_network,
    with_weights,
    write_settings,
)

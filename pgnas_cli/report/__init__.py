"""A run as one self-contained HTML page."""

from .page import report_stage
from .text import ROLES

"""A run as one self-contained HTML page."""

from .page import write_report
from .text import role_words

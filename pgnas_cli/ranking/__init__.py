"""Rank candidates on held-out images: the exact race, and the statistics of its result."""

from .evaluator import Evaluator, finished, held_out_evaluator, races
from .leaderboard import SHOWN, Leaderboard, leaderboard_of, rank, rank_again, read_ranking
from .race import Race
from .statistics import error_cells, interval, like_guessing, paired_p
from .summary import (
    certainty_lines,
    coverage_line,
    ranking_headings,
    ranking_json,
    ranking_rows,
    ranking_title,
)

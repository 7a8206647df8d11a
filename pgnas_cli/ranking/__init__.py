"""Rank candidates on held-out images: the exact race, and the statistics of its result."""

from .evaluator import Progress, Ranking, held_out_judge, rank
from .leaderboard import (
    SHOWN,
    Board,
    Ranked,
    board_of,
    judges_of,
    rank_again,
    rank_stage,
    read_ranking,
    smallest_within_noise,
)
from .recalibration import Recalibration
from .statistics import interval, paired_p
from .summary import RANKING_HEADINGS, board_lines, ranked_lines, ranking_json, ranking_rows

"""Candidates: drawn from the posterior, within a budget, or from a baseline."""

from .baselines import baseline_probabilities, fixed_rate, other_size, random_baseline
from .budget import Tilt
from .draw import Candidates, draw_candidates, read_candidates, sample

"""Candidates: drawn from the posterior, within a budget, or from a baseline."""

from .baselines import baseline_probabilities, random_twin
from .budget import Tilt, named
from .draw import Drawn, draw_candidates, read_candidates, sample_stage

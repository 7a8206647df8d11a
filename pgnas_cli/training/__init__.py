"""Train: a super-network with its drop probabilities, or an exported network further."""

from .epoch import EpochRecord
from .finetuning import FinetunedEpoch, finetune, finetune_events, finetuned_path
from .fitting import (
    FitEvents,
    FitSummary,
    fit,
    fit_events,
    fit_network,
    with_fixed_rate,
)
from .history import epochs_of
from .plan import FitPlan
from .preparing import gated, prior_of
from .saving import Saving
from .scoring import BATCH, RESIDENT, Batches, Score, predictions, score

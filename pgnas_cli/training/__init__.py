"""Train: a super-network with its drop probabilities, or an exported network further."""

from .checkpoint import StopRequest
from .finetuning import EPOCHS, FinetunedEpoch, finetune_events
from .fitting import (
    SAVE_MINUTES,
    EpochRecord,
    FitEvents,
    FitPlan,
    FitSummary,
    fit_events,
    fit_network,
    gated,
    prior_of,
)
from .scoring import BATCH, RESIDENT, Batches, Score, score

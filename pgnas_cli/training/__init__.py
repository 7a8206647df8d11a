"""Train: a super-network with its drop probabilities, or an exported network further."""

from .checkpoint import StopRequest
from .finetuning import FinetunedEpoch, finetune_stage
from .fitting import FitSummary, Started, fit_stage
from .loop import EpochRecord, fit
from .scoring import BATCH, RESIDENT, Batches, Score, score

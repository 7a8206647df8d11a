"""Images: data sets found and split, batches for training and evaluation."""

from .batches import (
    evaluation_images,
    held_out_decoded,
    placed,
    steps_per_epoch,
    training_batches,
    training_rows,
)
from .dataset import (
    DataName,
    ImageData,
    Part,
    Preprocessing,
    Source,
    cut_data,
    digest,
    remarks_on,
)
from .pictures import SMALL
from .sources import find_data, load_data

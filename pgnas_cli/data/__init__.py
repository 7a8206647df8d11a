"""Images: data sets found and split, batches for training and evaluation."""

from .batches import (
    evaluation_image,
    evaluation_images,
    held_out_decoded,
    picture_batches,
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
from .listing import pictures_below
from .pictures import SMALL, thumbnail
from .policies import check_policy
from .sources import find_data, load_data

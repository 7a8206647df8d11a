"""Gates on input channels: layers that carry them, where they can sit, posterior and prior."""

from .layers import Gated, hard_keep, logistic_noise, relaxed_keep, undecided
from .placement import followers, gateable, segments
from .prior import Prior, kl
from .supernet import (
    check_keep,
    decided,
    draw,
    drop_probabilities,
    gates,
    layer_gates,
    make_concrete_,
    masked,
    of_rows,
    opened,
    per_gate,
    relaxed,
    remaining,
)

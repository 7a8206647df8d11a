"""Super-networks by name.

This face imports no torch, so that names can be listed quickly; what builds networks is imported
from its file: `registry.build`, `registry.inflate`, `registry.weights`.
"""

from .backbone import OBJECTIVE, Backbone, Inflation, Recipe, Start, preset, shortened
from .lookup import (
    LIBRARIES,
    MOST_PIXELS,
    PHOTOS,
    SMALL_IMAGES,
    admit,
    backbone_names,
    full_name,
)

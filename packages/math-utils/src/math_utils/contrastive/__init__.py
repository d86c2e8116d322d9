"""Training utilities for learned influence embeddings; the optimisers are torch.optim's."""

from math_utils.contrastive.losses import (
    InfoNCELoss,
    LocalContrastiveLoss,
    SpectralRegularization,
)
from math_utils.contrastive.mining import HardNegativeMiner
from math_utils.contrastive.schedules import (
    CurriculumParams,
    CurriculumScheduler,
    TemperatureAnnealing,
)

__all__ = [
    "CurriculumParams",
    "CurriculumScheduler",
    "HardNegativeMiner",
    "InfoNCELoss",
    "LocalContrastiveLoss",
    "SpectralRegularization",
    "TemperatureAnnealing",
]

"""Training utilities for learned influence embeddings; the optimisers are torch.optim's.

```python
import torch
from math_utils.contrastive import (
    CurriculumScheduler,
    HardNegativeMiner,
    InfoNCELoss,
    TemperatureAnnealing,
)

anchors, positives, candidates = torch.randn(8, 16), torch.randn(8, 16), torch.randn(100, 16)
projection = torch.nn.Linear(16, 16, bias=False)
optimizer = torch.optim.AdamW(projection.parameters(), lr=1e-3)
loss = InfoNCELoss()
generator = torch.Generator().manual_seed(0)
miner = HardNegativeMiner("distance_weighted", generator=generator)
curriculum = CurriculumScheduler.linear(
    stages=3, samples_per_stage=80, k_start=2, k_end=10, t_start=1.0, t_end=0.1
)
annealing = TemperatureAnnealing(start=0.5, end=0.1, steps=30, schedule="cosine")
for _ in range(30):
    stage = curriculum.current_params()
    loss.temperature, miner.temperature = annealing.temperature, stage.temperature
    anchor, positive = projection(anchors), projection(positives)
    mined = miner.mine(anchor, projection(candidates), stage.k_neighbors, positive)
    optimizer.zero_grad()
    loss(anchor, positive, projection(candidates[mined])).backward()
    optimizer.step()
    curriculum.step(len(anchors))
    annealing.step()
print(mined.shape)  # torch.Size([8, 10])
```

What is ill-defined is a ``ContrastiveError``, which is a ``ValueError``.
"""

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

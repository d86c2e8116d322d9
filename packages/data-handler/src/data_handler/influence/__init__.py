"""Influence inside a training loop: which sources help, and a mixture that follows.

calculator = MixtureWeightCalculator(model, {"probe": probe_loader}, MixtureConfig())
mixture = WeightedSourceDataset({"web": web, "books": books})
tracker = InfluenceTracker(calculator, {"web": web_loader, "books": books_loader}, mixture)
trainer = Trainer(model=model, train_dataset=mixture, ...)
tracker.attach(trainer)
trainer.train()
"""

from data_handler.influence.calculator import METHODS, MixtureWeightCalculator, SourceInfluence
from data_handler.influence.mixture import check_bounds, exponentiated_step, project_onto_bounds
from data_handler.influence.sources import WeightedSourceDataset
from data_handler.influence.tracker import InfluenceTracker, WeightUpdate

__all__ = [
    "METHODS",
    "InfluenceTracker",
    "MixtureWeightCalculator",
    "SourceInfluence",
    "WeightUpdate",
    "WeightedSourceDataset",
    "check_bounds",
    "exponentiated_step",
    "project_onto_bounds",
]

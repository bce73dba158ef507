"""Everything that draws radiographs of a class; what differs between them is asked of `training.families`."""

from fedmedgen.models.denoiser import Denoiser
from fedmedgen.models.moments import MomentsGenerator
from fedmedgen.models.one_step import OneStepGenerator

Generator = Denoiser | MomentsGenerator | OneStepGenerator
Trained = Denoiser | OneStepGenerator  # in rounds, at the sites

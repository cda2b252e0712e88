"""Training losses as functions of what one sweep knows: columns of logit statistics, class means, unit features.

Those of columns return one value per row, 0 on ignored rows; average over ``stats.valid``, or weigh them. All are
differentiable.
"""

from .columns import comp_sum, ldr_kl, max_suppression, spherical_z_loss
from .features import class_spread, mean_angle, supervised_contrastive, uniformity

__all__ = [
    "class_spread",
    "comp_sum",
    "ldr_kl",
    "max_suppression",
    "mean_angle",
    "spherical_z_loss",
    "supervised_contrastive",
    "uniformity",
]

"""Training losses as functions of what one sweep knows: columns of logit statistics, class means, unit features;
and of stored logits where the loss sorts them.

Those of columns return one value per row, 0 on ignored rows; average over ``stats.valid``, or weigh them. All are
differentiable.
"""

from .columns import comp_sum, ldr_kl, max_suppression, spherical_z_loss
from .features import class_spread, mean_angle, supervised_contrastive, uniformity
from .logits import ShrunkCrossEntropy, plackett_luce, shrunk_cross_entropy

__all__ = [
    "ShrunkCrossEntropy",
    "class_spread",
    "comp_sum",
    "ldr_kl",
    "max_suppression",
    "mean_angle",
    "plackett_luce",
    "shrunk_cross_entropy",
    "spherical_z_loss",
    "supervised_contrastive",
    "uniformity",
]

"""Beyond one process, on ``torch.distributed``."""

from .class_shards import ShardedClassStatistics
from .linear_divergence import linear_divergence
from .linear_loss import linear_loss
from .linear_stats import linear_stats
from .linear_topk import linear_topk

__all__ = ["ShardedClassStatistics", "linear_divergence", "linear_loss", "linear_stats", "linear_topk"]

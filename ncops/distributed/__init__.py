"""Beyond one process, on ``torch.distributed``."""

from .class_shards import ShardedClassStatistics
from .vocabulary import linear_stats

__all__ = ["ShardedClassStatistics", "linear_stats"]

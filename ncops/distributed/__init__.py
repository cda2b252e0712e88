"""Beyond one process, on ``torch.distributed``."""

"""Defects of the metrics."""

from .plants import Source

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/metrics/duality.py",
        "tests/test_metrics.py tests/test_collapse.py",
        (
            ("weight[rows].double() - offset", "weight[rows].double()"),
            ("means[rows].double() - origin", "means[rows].double()"),
            ("dot / (w.norm(dim=1) * m.norm(dim=1))", "dot / w.norm(dim=1)"),
            ("spread(values, ddof)", "spread(values, 0)"),
            ("w / w.norm() - m / m.norm()", "w / m.norm() - m / m.norm()"),
            ("weight.double() - offset if center_weight else weight", "weight"),
        ),
    ),
)

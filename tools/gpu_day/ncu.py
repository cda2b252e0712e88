"""A profile of our kernels by Nsight Compute, and its figures as a table."""

from __future__ import annotations

import csv

KERNELS = (
    "_splits", "_target_logits", "_chunk_gradient", "_one_tile", "linear_stats_kernel", "reduce_sorted",
    "scatter_", "logit_stats_kernel", "_pairs", "_nearest", "_sqnorms",
)  # fmt: skip
SECTIONS = ("SpeedOfLight", "Occupancy", "MemoryWorkloadAnalysis", "LaunchStats")
METRICS = (
    "Duration", "Compute (SM) Throughput", "DRAM Throughput", "L2 Cache Throughput", "L2 Hit Rate",
    "Achieved Occupancy", "Registers Per Thread",
)  # fmt: skip
COMMAND = (
    "ncu", "--clock-control", "none", "--target-processes", "all", "-k", f"regex:{'|'.join(KERNELS)}", "-c", 28,
    *(word for section in SECTIONS for word in ("--section", section)), "--csv", "--page", "details",
)  # fmt: skip


def table(text: str) -> str:
    """One line per launch, from ncu's CSV between what the program itself prints."""
    rows = [line for line in text.splitlines() if line.startswith('"')]
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(rows):
        found = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "grid": row["Grid Size"]})
        if row["Metric Name"] in METRICS:
            found[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    lines = [f"{'kernel':44}{'grid':>20}" + "".join(f"{name:>26}" for name in METRICS)]
    for found in launches.values():
        figures = "".join(f"{found.get(name, ''):>26}" for name in METRICS)
        lines.append(f"{found['kernel'].removeprefix('void ')[:42]:44}{found['grid']:>20}{figures}")
    return "\n".join(lines)

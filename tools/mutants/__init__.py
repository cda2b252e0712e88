"""Plants small defects, one at a time, in copies of the tree and runs the tests that should see them.

    python -m tools.mutants                              all of them: hours on two cores
    python -m tools.mutants ncops/stats csrc/cpu/pair    those of files whose paths begin so
    python -m tools.mutants --list                       how many per file

The tables (cpu.py, cuda.py, ...) name each defect, the tests of its file and, where a defect changes nothing that a
test could see, why; such a one is not run. A defect is killed when a test fails, or runs ten times as long as without
it; a survivor wants a test. Ends with 1 when fewer than 95 in 100 are killed; a table older than the code is an error.
"""

from . import blocks, compat, cpu, cpu_logits, cuda, distributed, lens, measure, metrics, ops, reference, stats, triton

TABLES = (
    cpu, cpu_logits, blocks, cuda, triton, ops, reference, metrics, stats, distributed, measure, lens, compat,
)  # fmt: skip
SOURCES = tuple(source for table in TABLES for source in table.SOURCES)

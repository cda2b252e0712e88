"""A day on a GPU: everything that needs one, in one command of less than nine minutes.

``python -m tools.gpu_day`` from the root of a bare copy of the repository: nothing is installed and no network is
needed. Steps, in the order of their worth: the machine (env), values at every production launch (smoke), times beside
the card's ceilings and the peers (bench), the tests in tests/gpu (pytest), compute-sanitizer over the compiled kernels
(sanitizer), and a profile (ncu). Each has its own limit and never more than what is left; none can stop the next.

Results go to --out, $OUT or gpu-day-out: env.txt, smoke.jsonl, bench.jsonl, pytest.txt, sanitizer.txt, ncu.txt,
log.txt and summary.txt, which ends with one table and with what failed. The exit status is 0 where nothing did.
What compiling would cost is carried along: ``make gpu-day-pack``, and docs/gpu.md.
"""

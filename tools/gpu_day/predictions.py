"""What was foretold before anything had run: milliseconds on an H100 SXM, of the kernels as they were and of the best
that a redesign should reach. No goal: beside what is measured it shows where the model of the card is wrong."""

FORETOLD = {  # case: {backend: milliseconds}, the best
    "linear_stats bfloat16 8192x4096x128256": ({"triton": 21, "cuda": 32}, 13),
    "linear_stats bfloat16 8192x576x49152": ({"triton": 2.1}, 1.1),
    "linear_stats bfloat16 32x4096x128256": ({"triton": 0.42}, 0.38),
    "linear_stats float32 4096x2048x32768": ({"triton": 20, "cuda": 12.5}, 5.5),
    "linear_stats backward bfloat16 8192x4096x128256": ({"triton": 100}, 50),
    "logit_stats bfloat16 8192x131072": ({"triton": 3, "cuda": 1.0}, 0.8),
    "logit_stats float32 8192x50257": ({"cuda": 0.65}, 0.6),
    "class_moments float32 1000000x1024x1000": ({"cuda": 1.7}, 1.5),
    "class_moments bfloat16 1000000x1024x1000": ({"cuda": 1.0}, 0.8),
    "class_moments bfloat16 1000000x1024x128256 zipf": ({"cuda": 1.7}, 1.1),
    "class_scatter float32 200000x2048x1000": ({"cuda": 19}, 8),
    "class_scatter bfloat16 200000x2048x1000": ({"cuda": 15}, 6),
    "class_scatter bfloat16 200000x2048x1000 raw": ({"cuda": 2.8}, 1.4),
    "pair_stats float32 32768x1024 cosine": ({"triton": 42}, 14),
    "pair_stats float32 32768x1024 log_distance": ({"triton": 50}, 16),
    "pair_stats bfloat16 32768x1024 cosine": ({"triton": 7}, 2.5),
    "nearest_class_mean float32 100000x512x1000": ({"triton": 3.6}, 1.3),
    "nearest_class_mean float32 20000x512x128256": ({"triton": 85}, 28),
    "projected_sqnorms float32 200000x512x512x1000": ({"triton": 4.2}, 1.4),
}

"""What the two versions of TFLite's benchmark_model print."""

CLASSIC = """STARTING!
INFO: Initialized session in 1.5ms.
count=3 first=900 curr=500 min=400 max=900 avg=600 std=200

count=50 first=450 curr=431 min=402.5 max=480 avg=425.25 std=12 p5=404 median=424 p95=470

Inference timings in us: Init: 1500, First inference: 900, Warmup (avg): 600, Inference (avg): 425.25
"""
LITERT = """
========== BENCHMARK RESULTS ==========
Model initialization: 1.50 ms
Warmup (first):       0.90 ms
Warmup (avg):         0.60 ms (3 runs)
Inference (avg):      0.43 ms (50 runs)
Inference (min):      0.40 ms
Inference (max):      0.48 ms
Inference (std):      0.01
Throughput:           12.00 MB/s

Memory Usage:
Init footprint:       1.00 MB
======================================
"""

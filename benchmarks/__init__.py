"""Benchmarks: what a thing costs, as a ratio to a thing that people know.

`cope` is about CoPE attention and `schemes` about every positional scheme, both on a CPU and long
rows; `small` is about train steps, short rows and commands there; `gpu` is about a card, and holds
kernels to float64 there. `measure` takes time and memory, `report` has what all reports share.
``scripts/benchmark.py`` and ``scripts/gpu_check.py`` run them.
"""

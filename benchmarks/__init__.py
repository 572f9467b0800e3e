"""Benchmarks: what a thing costs, as a ratio to a thing that people know.

`measure` times and weighs anything; `tables` and `pictures` are what the reports share. `cope` is
about CoPE attention, `schemes` about every positional scheme, both on a CPU; `gpu` checks and
measures on a GPU.
"""

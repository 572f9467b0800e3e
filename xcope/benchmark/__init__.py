"""Benchmarks: what a thing costs, as a ratio to a thing that people know.

`measure` times and weighs anything. Of CoPE attention on a CPU, `workloads` are what is run,
`bars`, `curves`, `saturation` and `variants` what is measured, `breakdown` where the time goes,
`report` and `plots` what is written down.
"""

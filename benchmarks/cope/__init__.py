"""What CoPE attention costs on a CPU.

`workloads` is what runs, `costs` what is measured of it and the bars, `breakdown` where time and
memory go, `report` the files that are written.
"""

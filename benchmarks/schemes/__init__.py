"""What every registered scheme costs over attention without positions, on a CPU.

`workloads` is what runs, `costs` what is measured of it and the bars, `report` the files that are
written. A new scheme needs no line here, only its options in ``configs/schemes/<name>.yaml``.
"""

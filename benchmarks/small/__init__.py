"""What positions cost where people train: short rows, small models, whole sweeps, on a CPU.

`plain` is a decoder without positions that all are measured over, `workloads` is what runs,
`costs` what is measured of it and the bars, `breakdown` where the time of missed bars goes,
`report` the files that are written.
"""

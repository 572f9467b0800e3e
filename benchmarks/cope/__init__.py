"""What CoPE attention costs.

`workloads` are what is run, `bars`, `curves`, `saturation` and `variants` what is measured,
`breakdown` where the time goes, `report` and `plots` what is written down.
"""

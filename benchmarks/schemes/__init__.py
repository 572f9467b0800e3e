"""What every registered scheme costs over attention without positions.

`workloads` are what is run, `costs` what is measured, `report` and `plots` what is written down.
"""

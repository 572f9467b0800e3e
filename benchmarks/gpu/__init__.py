"""What a GPU says: correctness against float64, then what attention and models cost there.

`compare` holds results to float64; `cope_cases`, `bias_cases` and `model_cases` are what is
compared, side by side in `processes`, beside what is slow to compile, by `warm`. `measure` takes
time and memory of `workloads`; `bars`, `biases`, `curve` and `more` are what is measured, in
`figures`. `record` keeps all of it as it comes, `report` and `plots` are what is written down.
"""

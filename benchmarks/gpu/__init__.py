"""What a GPU computes, held to float64, and what attention and models cost there.

`compare` measures errors; the cases are those of ``tests/gpu``, in `processes` side by side.
`workloads` is what runs, `costs` what is measured of it and the bars, in `figures`; `report` keeps
everything as it comes and writes it.
"""

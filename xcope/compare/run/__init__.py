"""The runs of a sweep: planned, trained in processes, gathered."""

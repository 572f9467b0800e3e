"""From runs to rows: means, intervals, paired tests, costs."""

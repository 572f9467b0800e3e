"""Models of other libraries on our operators, and ours in theirs."""

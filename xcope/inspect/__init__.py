"""What a trained model looks at: gates, positions, biases and attention, and pictures of them."""

from xcope.inspect.labels import token_labels
from xcope.inspect.page import page
from xcope.inspect.picture import picture
from xcope.inspect.table import summary_table
from xcope.inspect.trace import trace
from xcope.inspect.traced import HeadSummary, LayerTrace, Trace, summary

__all__ = [
    "HeadSummary",
    "LayerTrace",
    "Trace",
    "page",
    "picture",
    "summary",
    "summary_table",
    "token_labels",
    "trace",
]

"""What a trained model looks at: gates, positions, biases and attention, and pictures of them."""

from xcope.inspect.labels import token_labels
from xcope.inspect.page import page
from xcope.inspect.pictures import picture
from xcope.inspect.summary import HeadSummary, summary
from xcope.inspect.traced import LayerTrace, Trace
from xcope.inspect.tracing import trace

__all__ = [
    "HeadSummary",
    "LayerTrace",
    "Trace",
    "page",
    "picture",
    "summary",
    "token_labels",
    "trace",
]

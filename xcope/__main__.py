"""``xcope``, and ``python -m xcope``."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import sys  # noqa: E402

from xcope.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

"""``xcope sample``, from a clone."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load: no traceback

import sys

from xcope import cli

if __name__ == "__main__":
    sys.exit(cli.main("sample"))

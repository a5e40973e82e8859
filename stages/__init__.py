"""One thin script a stage: `python -m stages.<stage> --help`."""

import signal
import sys

# As Python finds the script of `python -m stages.<stage>`, this is its command line. Until the stage listens
# (stages/common.py), Ctrl-C ends it at once: nothing was begun, and a traceback of imports would say nothing.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

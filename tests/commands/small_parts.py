"""`syntheocc evaluate` with parts of two frames, started by test_evaluate.py in processes of its own."""

import os
import signal
import sys
import time

from syntheocc.commands import evaluate, exit_status
from syntheocc.engine.flags import parse_flags

evaluate.PART = 2
# Of a worker: it dies as one does that the system kills for its memory.
if os.environ.get("WORKER_DIES") and __name__ == "__mp_main__":
    evaluate.make_metrics = lambda config: os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("WORKER_SLEEPS") and __name__ == "__mp_main__":
    # One write, also where Python does not buffer: two workers say it at the same time.
    evaluate.make_metrics = lambda config: print("asleep\n", end="", flush=True) or time.sleep(300)

if __name__ == "__main__":
    sys.exit(exit_status(evaluate.run, parse_flags(evaluate.EvaluateConfig)))

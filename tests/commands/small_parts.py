"""`syntheocc evaluate` with parts of two frames, started by test_evaluate.py in processes of its own."""

import sys

from syntheocc.commands import evaluate, exit_status
from syntheocc.engine.flags import parse_flags

if __name__ == "__main__":
    evaluate.PART = 2
    sys.exit(exit_status(evaluate.run, parse_flags(evaluate.EvaluateConfig)))

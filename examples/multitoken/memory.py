"""How much memory one training step takes with n future-token heads: one head at a time, or all of them and one backward pass.

    python examples/multitoken/memory.py --out runs/memory

A step of n heads on the sum of their losses holds n tensors of logits, O(n·V) a position. With the heads one after the other on
the detached representation (`--form detach`, the paper's way) it holds the logits of one, O(V + d), and with surgery n gradients of the
representation, O(V + n·d). What is counted is every allocation of torch's allocator during one optimizer step, backward pass, surgery and
update included, less the parameters' gradients that the step leaves behind; parameters and optimizer state are there before. So it is
what a step needs beyond the training state, which grows with n whatever the form. On the CPU the count is exact and repeatable.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: its own folder is on the path, examples/ is what has to be
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's remarks on a machine without a GPU

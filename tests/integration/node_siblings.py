"""Be a process of a node, under `torchrun`: the first acts, and waits a while for its sibling.

Then they form their group.
"""

import os
import sys
import time
from pathlib import Path

from torch import distributed

from toolwise.training.launcher.machine import first_of_node_first

went_on = Path(sys.argv[1], "sibling")


def act() -> None:
    deadline = time.monotonic() + 2
    while not went_on.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    Path(sys.argv[1], "first").write_text(f"the sibling went on: {went_on.exists()}")


first_of_node_first(act)
if os.environ["LOCAL_RANK"] == "1":
    went_on.touch()
distributed.init_process_group("gloo")
distributed.barrier()

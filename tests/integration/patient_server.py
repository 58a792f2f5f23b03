"""The model server, but a tool call may take ten minutes: what ends one sooner is not its limit."""

import functools
import sys

from toolwise.serving.server import main
from toolwise.tools import python
from toolwise.tools.sandbox import SandboxLimits

if __name__ == "__main__":
    patient = functools.partial(python.PythonTool, limits=SandboxLimits(seconds=600))
    python.PythonTool = patient  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(main())

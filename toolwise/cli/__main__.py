"""`python -m toolwise.cli`."""

import sys

from toolwise.cli import app

sys.exit(app(prog_name="toolwise"))

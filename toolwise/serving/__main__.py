import sys

from toolwise.serving.server import main

sys.exit(main())

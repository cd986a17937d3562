"""``python -m mmdistill``, which is also what torchrun starts."""

import sys

from mmdistill.cli import main

sys.exit(main())

"""``python -m sami_train``: the command ``sami-train``."""

import sys

from sami_train.cli import main

if __name__ == "__main__":
    sys.exit(main())

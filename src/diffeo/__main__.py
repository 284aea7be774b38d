"""``python -m diffeo`` is ``diffeo``."""

import sys

from diffeo.cli import main

if __name__ == "__main__":
    sys.exit(main())

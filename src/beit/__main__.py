"""`python -m beit`: the same as the command `beit`."""

import sys

from beit.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m launch` and the console script `tandem`."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m launch` and the console script `tandem`."""

import os
import sys

from launch.shadowing import shadowing

# Before any other import: with `python -m` the working directory is the first place where modules are looked for.
if problem := shadowing(os.getcwd()):
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())

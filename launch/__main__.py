"""`python -m launch` and the console script `tandem`."""

import sys

from launch.checks.shadowing import leave_out_working_directory

# Before any other import: with `python -m` the working directory is the first place where modules are looked for.
leave_out_working_directory()

from launch.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

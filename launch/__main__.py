"""`python -m launch` and the console script `tandem`."""

import os
import sys

from launch.shadowing import shadowing


def main() -> int:
    """Run one command, unless the working directory holds what would break it; returns the exit code."""
    if problem := shadowing(os.getcwd()):  # before further imports: with `python -m` the working directory is first
        print(f"error: {problem}", file=sys.stderr)
        return 2
    from launch.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())

"""TRL's environment: benchmarks/.cache/trl, apart from ours, so that TRL stays no dependency.

`python -m benchmarks.trl_env` makes it; compare_trl does so by itself.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TORCH = (ROOT / "requirements/install_torch.py", ROOT / "requirements/torch.txt")
"""What installs torch, and what pins it."""
REQUIREMENTS = Path(__file__).with_name("trl_requirements.txt")
ENVIRONMENT = Path(__file__).parent / ".cache" / "trl"
COMPARED = ("trl", "torch", "transformers")


def ensure() -> Path:
    """Make the environment unless it is there with these requirements.

    Returns:
        Its Python.

    Raises:
        subprocess.CalledProcessError: when an installation fails; pip has printed why.
    """
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed.txt"
    wanted = "".join(path.read_text(encoding="utf-8") for path in (TORCH[1], REQUIREMENTS))
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    # First, so that trl's own requirement is already met and pip fetches no CUDA build; its dependencies come with trl.
    subprocess.run([python, *TORCH], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
    subprocess.run([python, TORCH[0], "--check", TORCH[1]], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def versions(python: Path | str) -> dict[str, str]:
    """Version of each of COMPARED in the environment of `python`; "none" where it is not installed."""
    program = (
        "import json, sys, importlib.metadata as m\n"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({name: have.get(name, 'none') for name in sys.argv[1:]}))"
    )
    done = subprocess.run([str(python), "-c", program, *COMPARED], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    print(json.dumps(versions(ensure())))

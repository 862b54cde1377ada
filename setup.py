"""Beside pyproject.toml: a wheel has configs/ and examples/ too, below launch/, for `tandem init`, and the settings."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithStarters(build_py):
    """Copies them where `launch/verbs/` finds them; an editable installation has them in the clone."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        shipped = Path(self.build_lib) / "launch" / "shipped"
        shutil.rmtree(shipped, ignore_errors=True)  # of an earlier build
        for name in ("configs", "examples"):
            shutil.copytree(ROOT / name, shipped / name, ignore=shutil.ignore_patterns("__pycache__"))
        # What `launch/verbs/setting_words.py` completes from.
        shutil.copy(ROOT / "docs" / "settings.md", shipped)


setup(cmdclass={"build_py": BuildWithStarters})

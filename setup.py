"""Adds recipes/ and rewards/ to the wheel, as dro_rl/recipes and dro_rl/rewards.

Everything else is in pyproject.toml. An editable install copies nothing: there the two folders
are found beside the package.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ("recipes", "rewards"):
            shutil.copytree(
                folder,
                Path(self.build_lib, "dro_rl", folder),
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )


setup(cmdclass={"build_py": BuildWithRecipes})

"""What pip runs before it installs jaxclf from a clone or from git."""

import sys

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SupportedSystems(BuildHookInterface):
    """Refuses an installation that could not run."""

    def initialize(self, version: str, build_data: dict) -> None:
        """End with one line on Windows, which has neither POSIX file locks nor signals between processes."""
        if sys.platform == "win32":
            sys.exit("jaxclf does not run on Windows: install it under WSL 2, on Linux or on macOS")

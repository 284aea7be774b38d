"""Puts the kernels that ``make wheel`` compiled into a wheel of this platform; without them a wheel is for any."""

import os
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Kernels(BuildHookInterface):
    """The hook: ``DIFFEO_PREBUILT`` names the folder that they lie in."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files, and name the platform: any Python, for they are called through ctypes."""
        folder = os.environ.get("DIFFEO_PREBUILT", "")
        if not folder or version == "editable":
            return
        for path in (Path(folder) / "manifest.json", *sorted(Path(folder).glob("*.so"))):
            build_data["force_include"][str(path)] = f"diffeo/ops/cpu/builds/{path.name}"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

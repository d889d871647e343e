"""Build hook: adds chorus_rpc and the generated code to the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SharedPackages(BuildHookInterface[Any]):
    """Adds packages from outside the project's folder.

    `force-include` in pyproject.toml would copy them into an editable installation as well, where the copies
    would shadow the checkout.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        # In a source distribution the folders are inside the project, in a checkout next to it.
        base = root if (root / "rpc").is_dir() else root.parent
        build_data["force_include"] |= {
            str(base / "rpc/chorus_rpc"): "chorus_rpc",
            str(base / "proto/gen/chorus"): "chorus",
        }

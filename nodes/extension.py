"""The pack's extension: which nodes there are."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import concepts, detect, hgr, host, report, safecfg, testbed, train_hgr


class SafeGuidanceExtension(ComfyExtension):
    """Hands the host the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack; also makes its model folder known."""
        # not in on_load, which older hosts do not call for custom nodes
        host.register_folder()
        modules = (safecfg, hgr, concepts, detect, train_hgr, report, testbed)
        return [node for module in modules for node in module.NODES]

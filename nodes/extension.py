"""The pack's extension: which nodes there are."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import align, baselines, concepts, detect, hgr, host, report, safecfg, safree, sp_guard, testbed, train_hgr

_MODULES = (safecfg, safree, sp_guard, baselines, hgr, concepts, detect, train_hgr, align, report, testbed)


class SafeGuidanceExtension(ComfyExtension):
    """Hands the host the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack; also makes its model folder known."""
        # not in on_load, which older hosts do not call for custom nodes
        host.register_folder()
        return [node for module in _MODULES for node in module.NODES]

"""The pack's extension: which nodes there are."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import concepts, detect, report, testbed
from . import redirectors as hgr
from .concept_guidance import concept_guidance as baselines
from .concept_guidance import sp_guard
from .host import patcher as host
from .safecfg import node as safecfg
from .safree import node as safree
from .training import align, train_hgr

_MODULES = (safecfg, safree, sp_guard, baselines, hgr, concepts, detect, train_hgr, align, report, testbed)


class SafeGuidanceExtension(ComfyExtension):
    """Hands the host the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack; also makes its model folder known."""
        # not in on_load, which older hosts do not call for custom nodes
        host.register_folder()
        return [node for module in _MODULES for node in module.NODES]

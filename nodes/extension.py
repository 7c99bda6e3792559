"""The pack's extension: which nodes there are."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import concepts, detect, guard_model, redirectors, report, testbed
from .concept_guidance import concept_guidance, factory, sp_guard
from .evaluate import judge as evaluate_judge
from .evaluate import page as evaluate_page
from .evaluate import prompt_file as evaluate_prompts
from .evaluate import record as evaluate_record
from .host import files
from .safecfg import node as safecfg
from .safree import filter as safree_filter
from .safree import reattention as safree_reattention
from .text_redirector import load as text_redirector_load
from .text_redirector import safe_conditioning
from .text_redirector import train as text_redirector_train
from .training import align, train_hgr

_MODULES = (
    guard_model,
    safecfg,
    safree_filter,
    safree_reattention,
    safe_conditioning,
    text_redirector_load,
    factory,
    sp_guard,
    concept_guidance,
    redirectors,
    concepts,
    detect,
    train_hgr,
    align,
    text_redirector_train,
    report,
    evaluate_prompts,
    evaluate_judge,
    evaluate_page,
    evaluate_record,
    testbed,
)


class SafeGuidanceExtension(ComfyExtension):
    """Hands the host the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack; also makes its model folder known."""
        # not in on_load, which older hosts do not call for custom nodes
        files.register_folder()
        return [node for module in _MODULES for node in module.NODES]

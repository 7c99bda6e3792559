"""SafeGuidance: safe image generation by steering classifier-free guidance. Entry point of the node pack."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes.extension import SafeGuidanceExtension

# Help pages. Named here and not in pyproject.toml, where the host would serve them under the project's name: the editor
# looks under the name of the folder the pack is installed in.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> SafeGuidanceExtension:
    """Give the host the pack's extension."""
    from .nodes.extension import SafeGuidanceExtension

    return SafeGuidanceExtension()


# A server policy is armed here, before anything else of the pack can fail, and only where the environment names one.
if {"SAFEGUIDANCE_POLICY", "SAFEGUIDANCE_POLICY_DIGEST"} & set(os.environ):
    from .nodes.policy import import_and_arm

    import_and_arm()

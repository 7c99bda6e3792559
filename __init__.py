"""SafeGuidance: safe image generation by steering classifier-free guidance. Entry point of the node pack."""

from __future__ import annotations

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

"""SafeGuidance: safe image generation by steering classifier-free guidance. Entry point of the node pack."""


async def comfy_entrypoint():  # noqa: ANN201 (the return type is the host's)
    """Give the host the pack's extension."""
    from .nodes.extension import SafeGuidanceExtension

    return SafeGuidanceExtension()

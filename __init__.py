"""SafeGuidance: safe image generation by steering classifier-free guidance. Entry point of the node pack."""

# Help pages. Named here and not in pyproject.toml, where the host would serve them under the project's name: the editor
# looks under the name of the folder the pack is installed in.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():  # noqa: ANN201 (the return type is the host's)
    """Give the host the pack's extension."""
    from ..nodes.extension import SafeGuidanceExtension

    return SafeGuidanceExtension()

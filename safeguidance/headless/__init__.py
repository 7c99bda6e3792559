"""ComfyUI without its editor: finding a checkout, starting it in a process, running graphs, training on its models.

Nothing of the host is imported when these modules are; that happens inside functions, in a process of the host's own
interpreter.
"""

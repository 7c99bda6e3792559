"""SafeGuidance core: safety guidance for diffusion sampling in plain PyTorch (no host imports)."""

__version__ = "0.1.0"

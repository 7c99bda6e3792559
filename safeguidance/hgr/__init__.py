"""The Harmful Guidance Redirector (HGR): network, training target and loop, weight files."""

from .network import HGR, HGRConfig
from .weights import load_hgr, save_hgr

__all__ = ["HGR", "HGRConfig", "load_hgr", "save_hgr"]

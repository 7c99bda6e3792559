"""Headless harness: runs workflows, tests and measurements on a real ComfyUI, without a browser.

Start with `python -m tests.harness --help` from the root of the pack.
"""

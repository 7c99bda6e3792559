"""Types of sockets that only this pack's nodes have."""

from __future__ import annotations

from comfy_api.latest import io

ConceptsType = io.Custom("SAFEGUIDANCE_CONCEPTS")
"""What a method looks for: ``safeguidance.concepts.Concepts``."""

RedirectorType = io.Custom("SAFEGUIDANCE_REDIRECTOR")
"""What reads a prompt: ``safeguidance.redirector.interface.Redirector``."""

TextRedirectorType = io.Custom("SAFEGUIDANCE_TEXT_REDIRECTOR")
"""What moves a prompt: ``safeguidance.redirector.text_space.TextRedirector``."""

TraceType = io.Custom("SAFEGUIDANCE_TRACE")
"""What the runs of a node did: ``safeguidance.report.trace.Trace``."""

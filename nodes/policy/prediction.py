"""Gate 2: the model predicts inside a guarded run, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .refusal import Refused
from .state import Armed

KEY = "safeguidance_policy"
"""Name of the token among the options that reach the model."""
MESSAGE = "This node uses the model without the safety guard of this server, so it was stopped. Use KSampler."
_OWN: ContextVar[bool] = ContextVar("safeguidance_own_prediction", default=False)


class Token:
    """Goes with a guarded run to the model; good only while the guard is at work, so that keeping it is worth nothing.

    Attributes:
        calls: predictions that were made with it.
    """

    def __init__(self) -> None:
        self._depth, self.calls = 0, 0

    def __deepcopy__(self, _memo: dict[int, Any]) -> Token:
        return self

    @property
    def good(self) -> bool:
        """Whether the guard watches the prediction that is being made."""
        return self._depth > 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The guard watches a prediction."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1


@contextmanager
def own_prediction() -> Iterator[None]:
    """A judge of this server looks at a picture; nothing is drawn."""
    before = _OWN.set(True)
    try:
        yield
    finally:
        _OWN.reset(before)


def gate(armed: Armed) -> None:
    """Put the gate into the lowest prediction that all models of the host share."""
    import comfy.model_base

    def guards(before: Any) -> Any:
        def apply_model(self: Any, *args: Any, **kwargs: Any) -> Any:
            options = args[5] if len(args) > 5 else kwargs.get("transformer_options")
            token = options.get(KEY) if isinstance(options, dict) else None
            if isinstance(token, Token) and token.good:
                token.calls += 1
            elif not _OWN.get():
                raise Refused(MESSAGE, f"a prediction of {type(self).__name__} outside a guarded run")
            return before(self, *args, **kwargs)

        return apply_model

    armed.replaced.put(comfy.model_base.BaseModel, "apply_model", guards)
    armed.replaced.put(comfy.model_base.BaseModel, "_apply_model", guards)


def gated(model: Any) -> bool:
    """Whether predictions of a model object go through the gate."""
    import comfy.model_base

    base = comfy.model_base.BaseModel
    return type(model).apply_model is base.apply_model and not {"apply_model", "_apply_model"} & set(vars(model))

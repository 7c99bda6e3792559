"""Settings and saved workflows: a folder for each user that the proxy names, in place of one for all."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from .state import CALLER, Armed

_ODD = re.compile(r"[^A-Za-z0-9-]+")


def folder_of(user: str) -> str:
    """Name of a user's folder among those of the host: readable, and never that of another.

    Args:
        user: as the proxy names them; "" is nobody in particular, and all of these share one.
    """
    if not user:
        return "policy-nobody"
    # names that differ in signs or capitals only are one folder on some file systems
    return f"policy-{_ODD.sub('-', user)[:40]}-{hashlib.sha256(user.encode()).hexdigest()[:16]}"


def gate(armed: Armed) -> None:
    """Put it where the host asks whose settings and files a request is about, if users can be told apart."""
    if not armed.named or not armed.policy.identity.private:
        return
    import folder_paths
    from app.user_manager import UserManager

    def names(_before: Any) -> Any:
        def get_request_user_id(self: Any, request: Any) -> str:
            caller = CALLER.get() or armed.nobody
            name = folder_of(caller.user)
            # what the host itself does for its one user at the start
            os.makedirs(os.path.join(folder_paths.get_user_directory(), name), exist_ok=True)
            return name

        return get_request_user_id

    armed.replaced.put(UserManager, "get_request_user_id", names)

"""The armed server: a policy that no graph and no request can drop. Nothing here is imported while none is set."""

from __future__ import annotations


def import_and_arm() -> None:
    """Arm the server that loads this pack.

    Raises:
        SystemExit: if it cannot be done; the host would log any other error and go on without the pack.
    """
    try:
        from .arm import arm
    except Exception as error:
        raise SystemExit(f"SafeGuidance: the server was not armed, so it does not start: {error}") from error
    arm()

"""The host's folders: model files of the pack, inputs and outputs.

Everything of the host is imported inside functions, so that the pack can be imported without a host.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from ...safeguidance.errors import InputError
from ...safeguidance.prompts.files import lies_within

PACK_ROOT = Path(__file__).resolve().parents[2]
FOLDER = "safeguidance"
"""Name of the pack's model folder category: ``models/safeguidance``, and the pack's own ``weights``."""


def register_folder() -> None:
    """Make ``models/safeguidance`` a model folder of the host; the pack's own weights come after it."""
    import folder_paths

    own = Path(folder_paths.models_dir) / FOLDER
    folder_paths.add_model_folder_path(FOLDER, str(own), is_default=True)
    folder_paths.add_model_folder_path(FOLDER, str(PACK_ROOT / "weights"))
    paths = folder_paths.folder_names_and_paths[FOLDER][0]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def model_file(name: str) -> Path | None:
    """Path of a file of the category, or None where there is no such file."""
    import folder_paths

    path = folder_paths.get_full_path(FOLDER, name)
    return None if path is None else Path(path)


def weight_names(part: str) -> list[str]:
    """Names of files of the category that may hold one kind of weights.

    Args:
        part: of the names of the pack's own files of that kind, such as ``hgr``; any file of a user's may be one.
    """
    import folder_paths

    own = (PACK_ROOT / "weights").resolve()
    names = []
    for name in folder_paths.get_filename_list(FOLDER):
        path = model_file(name)
        if path is not None and (part in path.name or not path.resolve().is_relative_to(own)):
            names.append(name)
    return names


def find_weights(name: str, part: str, field: str, node: str, otherwise: str) -> Path:
    """A file of the category.

    Args:
        name: of the file.
        part: see ``weight_names``.
        field: input that names it.
        node: name of the node, for the message.
        otherwise: what to do without such a file, as a clause.

    Raises:
        InputError: if it is not there.
    """
    names = weight_names(part)
    path = model_file(name) if name in names else None
    if path is None:
        raise InputError(
            field,
            f"{name!r} is not there",
            ", ".join(names) or "none found",
            f"put a .safetensors file of that kind into {user_folder()} and refresh (press R), or {otherwise}",
            node,
        )
    return path


def weight_fingerprint(name: str | None) -> str:
    """Text that changes when a file of the category is replaced."""
    path = None if name is None else model_file(name)
    return "missing" if path is None else f"{path}:{path.stat().st_mtime_ns}:{path.stat().st_size}"


def user_folder() -> str:
    """Where a user puts files of the category, as text for messages."""
    import folder_paths

    return str(Path(folder_paths.models_dir) / FOLDER)


def new_model_file(name: str) -> Path:
    """Where a file of the category is written to: the user's own folder."""
    folder = Path(user_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def user_file(folder: str, name: str) -> Path:
    """A file that the pack keeps for itself in the host's user folder; it need not exist."""
    import folder_paths

    return Path(folder_paths.get_user_directory()) / FOLDER / folder / name


def input_folder() -> Path:
    """The host's input folder."""
    import folder_paths

    return Path(folder_paths.get_input_directory())


def input_file(name: str, field: str = "dataset") -> Path:
    """A file in the host's input folder or a folder below it, which need not exist.

    A graph may come from somebody who must not look at other files: a full path, ``..`` or a symbolic link that leads
    out of the folder is refused, whether there is a file or not.

    Args:
        name: as a user gives it.
        field: the input that it is given in.

    Raises:
        InputError: if the name is not that of a file inside the folder.
    """
    folder, steps = input_folder(), PureWindowsPath(name)
    # a Windows path reads both kinds of slashes and knows drives, so the answer is the same on every system
    outside = not name.strip() or steps.drive or steps.root or ".." in steps.parts
    if outside or not lies_within(folder / name, folder):
        raise InputError(
            field,
            f"{name!r} is not the name of a file inside ComfyUI's input folder",
            "a name such as prompts.csv, or with folders below the input folder such as sets/prompts.csv",
            "copy the file into the input folder and give its name there",
        )
    return folder / name


def input_fingerprint(name: str | None) -> str:
    """Text that changes when a file in the input folder does; also where there is none, or the name is refused."""
    try:
        path = None if name is None else input_file(name)
        found = None if path is None else path.stat()
    except (InputError, OSError):
        return "missing"
    return "missing" if found is None else f"{path}:{found.st_mtime_ns}:{found.st_size}"


def output_folder(name: str) -> Path:
    """The pack's folder for a run, in the host's output folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / FOLDER / name

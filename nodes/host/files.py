"""The host's folders: model files of the pack, inputs and outputs.

Everything of the host is imported inside functions, so that the pack can be imported without a host.
"""

from __future__ import annotations

from pathlib import Path

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


def hgr_files() -> list[str]:
    """Names of what may be an HGR: every safetensors file of the category, of the pack's own only those named hgr."""
    import folder_paths

    own = (PACK_ROOT / "weights").resolve()
    names = []
    for name in folder_paths.get_filename_list(FOLDER):
        path = model_file(name)
        if path is not None and ("hgr" in path.name or not path.resolve().is_relative_to(own)):
            names.append(name)
    return names


def user_folder() -> str:
    """Where a user puts files of the category, as text for messages."""
    import folder_paths

    return str(Path(folder_paths.models_dir) / FOLDER)


def new_model_file(name: str) -> Path:
    """Where a file of the category is written to: the user's own folder."""
    folder = Path(user_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def input_file(name: str) -> Path:
    """A file by full path, or by its name in the host's input folder."""
    import folder_paths

    path = Path(name).expanduser()
    return path if path.is_absolute() else Path(folder_paths.get_input_directory()) / path


def output_folder(name: str) -> Path:
    """The pack's folder for a run, in the host's output folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / FOLDER / name

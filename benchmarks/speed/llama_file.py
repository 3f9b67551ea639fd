"""A model folder as a GGUF file beside it, for llama.cpp."""

from pathlib import Path

from abyssal.quant.gguf_file import export


def file_of(folder: Path, kind: str) -> Path:
    """The file of a folder's model, beside the folder, written if it is not there."""
    file = folder.with_name(f"{folder.name}.{kind}.gguf")
    if not file.exists():
        print(f"writing {file}", flush=True)
        export(folder, file, kind)
    return file

"""What an import of an integration says where its library is missing."""

from __future__ import annotations


def missing(library: str, extra: str) -> ModuleNotFoundError:
    """The error to raise, naming the extra that installs ``library``."""
    return ModuleNotFoundError(
        f"ncops.integrations.{library} needs the package {library!r}: pip install 'ncops[{extra}]'", name=library
    )

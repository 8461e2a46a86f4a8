"""Where the shipped configurations are: in an installed package, or beside it in a checkout."""

from pathlib import Path

import qam_lightning

_PACKAGE = Path(qam_lightning.__file__).parent
_INSTALLED = _PACKAGE / "configs"

CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
"""``base.yaml``, the domains' files and the recipes."""

METHODS = CONFIGS / "methods"
"""One file per method."""

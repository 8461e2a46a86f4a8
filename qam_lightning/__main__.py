"""``python -m qam_lightning``: the same as the command ``qam``."""

from qam_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

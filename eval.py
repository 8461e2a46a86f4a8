"""Evaluate a trained policy: ``python eval.py --help``."""

import sys

from qam_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["eval", *sys.argv[1:]]))

"""Trains a method, or collects a dataset: ``python train.py --help``."""

from qam_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

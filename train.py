"""Train a method, collect a dataset or look at one: ``python train.py --help``."""

from qam_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

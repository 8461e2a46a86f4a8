"""Lightning loggers of this project: a CSV file without gaps, and Weights & Biases."""

from qam_lightning.loggers.base import RunLogger
from qam_lightning.loggers.csv import CsvLogger
from qam_lightning.loggers.wandb import WandbLogger

__all__ = ["CsvLogger", "RunLogger", "WandbLogger"]

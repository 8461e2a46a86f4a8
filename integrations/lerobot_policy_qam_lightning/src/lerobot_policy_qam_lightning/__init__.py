"""Policies that qam_lightning exported, in LeRobot. Importing this registers them."""

from lerobot_policy_qam_lightning.configuration_qam_lightning import QAMLightningConfig

__all__ = ["QAMLightningConfig"]

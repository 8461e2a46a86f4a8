"""Environments and the action-chunk rollout that collection and evaluation share."""

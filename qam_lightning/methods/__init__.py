"""The algorithms: `base.py` holds the contract, every other file is one method."""

"""OGBench files, chunk arithmetic, the DataModule and dataset generation."""

"""Statistics, tables, plots and video of evaluation results."""

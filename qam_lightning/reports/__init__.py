"""From run folders to tables with intervals, figures and a page."""

"""What every part may use: files, errors, random streams, versions."""

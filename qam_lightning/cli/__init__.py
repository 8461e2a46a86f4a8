"""The command line: ``python train.py``, ``python eval.py``, ``qam``, ``python -m qam_lightning``.

``dispatch`` chooses the command. Of ``fit``: ``reading`` reads a file, ``values`` a flag, and
``compose`` lays them over one another; ``training`` parses them and trains, ``trainer`` is
Lightning's trainer, ``resume`` protects run folders, ``fit`` and ``help`` show what can be set, and
``explain`` words mistakes. One module each for the other commands.

Nothing here is imported before it is needed: PyTorch and Lightning take seconds.
"""

from qam_lightning.cli.dispatch import main

__all__ = ["main"]

"""Trained policies as folders of their own: written, checked, described and read.

``graph`` traces acting for PyTorch's exporters, ``folder`` says what is in a folder and reads it,
``write`` makes one, ``check`` compares it with the policy, ``card`` describes it, and ``latency``
measures it.
"""

FORMATS = ("onnx", "pt2")
"""The graphs that a folder may hold: of ONNX, and of ``torch.export``."""
EPISODES = 10
"""In how many episodes a folder's success is compared with the policy's, by default."""

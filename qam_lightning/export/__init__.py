"""Trained policies as folders of their own: written, checked, described and read.

``graph`` traces acting for PyTorch's exporters, ``folder`` says what is in a folder and reads it,
``write`` makes one, ``check`` compares it with the policy, ``card`` describes it, and ``latency``
measures it.
"""

"""Studies: many runs from one file, here or on a cluster.

``study`` reads the file, ``validation`` builds every configuration before anything starts,
``state`` reads what became of a run from its folder, ``launch`` makes a run a process, ``local``
runs several of them at a time, and ``slurm`` submits them to a cluster.
"""

"""Studies: many runs from one file, here or on a cluster.

``study`` reads the file. ``plan`` builds every configuration before anything starts. ``state``
reads from a run's folder what became of the run. ``launch`` makes a run a process. ``local`` runs
several of them at a time, and ``search`` chooses the next one;
``begun`` finds those that it has begun. ``slurm`` submits them to a cluster,
where ``slurm_job`` keeps them going.
"""

"""Collection online, without Lightning: schedule, environment actors, replay, statistics, batches.

Everything is a function of counters. The update with number g sees the first n(g) environment
steps, and its batch comes from the dataset and these steps (`Schedule`, `MixedSampler`). A chunk's
actions are fixed at the step on which the chunk starts, by the weights of that moment and by noise
that belongs to the step's number. So an environment can execute its chunk in its own process, in
parallel with updates (`EnvActor`), and nothing changes: `Collector` waits for a step when the next
one is due or a batch holds it.

With E environments, environment (n - 1) mod E takes step n. On R processes, environment e lives in
process e mod R, which sends its steps to all others. So each process holds the whole replay, and
training does not depend on R.
"""

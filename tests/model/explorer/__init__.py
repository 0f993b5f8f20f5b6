"""The explorer: seeded random runs of the real scripts on a real server, with faults, checked after each step.

Two workers with a memory of their leases, one operator with stale views, the shard's maintenance, and one class
of faults take turns. A run is a list of steps, drawn from its seed before it begins; each step is a small value,
so a run that fails is shrunk by leaving steps out, and told as a story that a command line replays::

    python -m tests.model.explorer --seed 7 --fault strangers

    wire      the fastest way to call a script; the scripts as they are, mutated, or made to die
    model     what a shard holds (a snapshot), and the books of what must have become of each letter
    checks    what one call may have changed
    world     the shard, its actors and their calls: where snapshot, call and check come together
    actions   what workers, operator and maintenance do
    faults    what else happens, by class
    drain     the end of each run: the faults stop, and every letter must come to its end
    runner    one run, or many;  shrink: the shortest story that still fails
    mutants   broken variants of the scripts, each of which must be caught
"""

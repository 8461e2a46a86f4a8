"""The published JAX implementation's update, timed by turns; `update.py` starts it.

PYTHON benchmarks/jax_update.py CHECKOUT                       the version of JAX
PYTHON benchmarks/jax_update.py CHECKOUT qam SIZE              GFLOP of an update, as XLA counts it
PYTHON benchmarks/jax_update.py CHECKOUT qam SIZE SECONDS      timing by turns

SIZE is JSON, a value of `workload.SIZES`: '{"width": 512, "depth": 4, ...}'.

Runs with an interpreter that has JAX, and imports nothing of this project. It answers as
`update_cell.py` does: a line of JSON when warm, and one for every line ``go``. The batch is the
same at every update: unlike ours, this time contains no data and no logging.
"""

import importlib
import json
import os
import statistics
import sys
import time

AGENTS = {
    "bam": ("bam", {"inv_temp": 10.0, "residual": True}),
    "cgql": ("cgql", {"mode": "simple", "inv_temp": 10.0, "guidance_coef": 0.1}),
    "cgql_linex": ("cgql", {"mode": "linex", "inv_temp": 10.0, "guidance_coef": 0.1}),
    "cgql_mse": ("cgql", {"mode": "mse", "inv_temp": 10.0, "guidance_coef": 0.1}),
    "dac": ("dcgql", {"actor_loss_type": "dac", "clip_sampler_before": True}),
    "dsrl": ("dsrl", {"noise_scale": 1.4}),
    "fawac": ("fawac", {"inv_temp": 0.8}),
    "fbrac": ("fbrac", {"alpha": 0.03}),
    "fedit": ("fedit", {"edit_scale": 0.3}),
    "fql": ("fql", {"alpha": 30.0}),
    "ifql": ("ifql", {"kappa": 0.95}),
    "qam": ("qam", {"inv_temp": 10.0, "residual": True}),
    "qam_edit": ("qam", {"inv_temp": 10.0, "residual": True, "edit_scale": 0.1}),
    "qam_fql": ("qam", {"inv_temp": 10.0, "residual": True, "fql_alpha": 30.0}),
    "qsm": ("dcgql", {"actor_loss_type": "qsm", "alpha": 10.0, "clip_sampler_after": True}),
    "rebrac": ("rebrac", {"alpha_actor": 0.01}),
    "rlpd": ("rlpd", {}),
}
"""Our method -> its agent there, and the settings that make it the same method as ours."""

OBS_DIM, ACTION_DIM, CHUNK, BATCH = 46, 5, 5, 256
LEAST = 5  # timed updates of a turn


def build(method, size):
    """Create the agent that is our method in a size of ours."""
    import numpy as np

    name, settings = AGENTS[method]
    config = importlib.import_module(f"agents.{name}").get_config()
    hidden = (size["width"],) * size["depth"]
    sizes = {
        "num_qs": size["num_critics"],
        "flow_steps": size["flow_steps"],
        "diffusion_steps": size["flow_steps"],
        **{key: hidden for key in config if key.endswith("_hidden_dims")},
    }
    config.update({key: value for key, value in sizes.items() if key in config})
    config.update({"horizon_length": CHUNK, "action_chunking": True, **settings})
    observation, action = (np.zeros(n, np.float32) for n in (OBS_DIM, ACTION_DIM))
    agent = importlib.import_module("agents").agents[name].create(0, observation, action, config)
    return agent, config.get("actor_freq")


def random_batch():
    """Return random chunks; all their steps are valid."""
    import numpy as np

    rng = np.random.default_rng(0)
    ones = np.ones((BATCH, CHUNK), np.float32)
    return {
        "observations": rng.standard_normal((BATCH, OBS_DIM), np.float32),
        "next_observations": rng.standard_normal((BATCH, CHUNK, OBS_DIM), np.float32),
        "actions": rng.uniform(-1, 1, (BATCH, CHUNK, ACTION_DIM)).astype(np.float32),
        "rewards": -ones,
        "masks": ones,
        "valid": ones,
    }


def main(checkout, method=None, size="{}", seconds=None):
    """Answer with the versions or the operations, or measure."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print goes elsewhere

    def send(**values):
        print(json.dumps(values), file=out, flush=True)

    sys.path.insert(0, checkout)
    import jax

    importlib.import_module("agents")
    if method is None:
        send(jax=jax.__version__, device=jax.devices()[0].device_kind)
        return

    start = time.perf_counter()
    agent, delay = build(method, json.loads(size))
    batch = random_batch()
    if seconds is None:
        flags = {"full_update": True} if delay else {}
        program = type(agent).update.lower(agent, batch, **flags).compile()
        send(gflop=program.cost_analysis()["flops"] / 1e9)
        return

    def cycle():
        """Update once, or as often as makes one update of a delayed actor; return ms of one."""
        nonlocal agent
        begun = time.perf_counter()
        for step in range(delay or 1):
            flags = {"full_update": step == 0} if delay else {}
            agent, _ = agent.update(batch, **flags)
            jax.block_until_ready(agent.network.params)
        return 1e3 * (time.perf_counter() - begun) / (delay or 1)

    cycle()
    compile_seconds = time.perf_counter() - start
    for _ in range(3):
        cycle()
    send(compile_seconds=compile_seconds)
    while sys.stdin.readline().strip() == "go":
        cycle()  # the first after the pause is left out
        times, begun = [], time.perf_counter()
        while len(times) < LEAST or time.perf_counter() - begun < float(seconds):
            times.append(cycle())
        send(ms=statistics.median(times), ms_min=min(times))


if __name__ == "__main__":
    main(*sys.argv[1:])

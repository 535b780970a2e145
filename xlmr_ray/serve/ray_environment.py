"""What Ray reads from the environment when it is imported: to be imported before it. What is there already stays."""

import os

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray Serve's own log goes to files; ours is what the user sees.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Replicas have HTTP servers of their own, to which our HAProxy sends the requests. Ray Serve's proxy makes actor
    # calls of them, which take more of the CPU than tokenizing does; its own HAProxy: see `haproxy.py`.
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    # Seconds that a replica is reachable after it was asked to end, 30 by default: the front asks twice a second.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    # Ray runs its workers behind all else on the machine, at 15. With every core in a forward pass, whatever takes one
    # for a moment is waited for by all: a single request took 1.5 times the engine's own time so, and 1.3 times else.
    "RAY_worker_niceness": "0",
    # A proxy that is not ready after so many seconds is killed, and with it the start: 5, the default, are too few
    # where the machine is busy.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}

for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)

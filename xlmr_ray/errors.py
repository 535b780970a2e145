"""How a run ends badly. All carry one line that says what, where and what to do; the command line prints only
it.
"""


class UserError(ValueError):
    """The call, the job file or what it names is wrong (exit code 2)."""


class JobFailed(RuntimeError):
    """The job started and could not be finished (exit code 1)."""


class Interrupted(JobFailed):
    """Stopped by ^C or SIGTERM: what was done is kept, and the same command goes on from there (exit code 130)."""

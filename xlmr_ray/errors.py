"""The two ways a run ends badly. Both carry one line that says what, where and what to do; the command line prints only
it.
"""


class UserError(ValueError):
    """The call, the job file or what it names is wrong (exit code 2)."""


class JobFailed(RuntimeError):
    """The job started and could not be finished (exit code 1)."""

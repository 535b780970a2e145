"""Who is in a queue: a queue that is closed goes on until the last one has left, and then its thread ends."""

import threading


class Door:
    """Of a queue whose thread waits for `changed`. A request enters before it begins and leaves when it has ended."""

    def __init__(self, changed: threading.Condition) -> None:
        self.changed = changed
        self.users = 0
        self.closing = self.shut = False

    def enter(self) -> bool:
        """False where the queue has ended: another one has taken its place."""
        with self.changed:
            self.users += not self.shut
            return not self.shut

    def leave(self) -> None:
        with self.changed:
            self.users -= 1
            self.changed.notify()

    def close(self) -> None:
        """The thread ends once nobody is in."""
        with self.changed:
            self.closing = True
            self.changed.notify()

    def done(self) -> bool:
        """Whether the thread is to end now, which shuts the door. The lock is held, and nothing waits."""
        self.shut = self.closing and not self.users
        return self.shut

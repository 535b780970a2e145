"""How a run goes, in figures."""

import time
from dataclasses import dataclass, field

from xlmr_ray.batch.ledger.record import Record
from xlmr_ray.text.progress_line import ProgressLine


@dataclass
class Figures:
    """What was done since the start of this launch; `total` rows and shards are the whole run's, `before` those of
    earlier launches. `planning`: how far the plan is, as long as the totals are estimated.
    """

    total_rows: int
    total_shards: int
    rows_before: int = 0
    shards_before: int = 0
    errors_before: int = 0
    rows_ok: int = 0
    rows_error: int = 0
    shards: int = 0
    tokens: int = 0
    padded: int = 0
    reused: int = 0
    planning: str = ""
    started: float = field(default_factory=time.monotonic)

    def add(self, record: Record) -> None:
        """A shard that was committed now; rows that are lost with a file that cannot be read are errors here."""
        self.rows_ok += record.rows_ok
        self.rows_error += record.rows_error + record.rows_lost
        self.tokens += record.stats.tokens
        self.padded += record.stats.padded
        self.reused += record.stats.reused
        self.shards += 1

    @property
    def rows(self) -> int:
        return self.rows_ok + self.rows_error

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def shards_in_all(self) -> str:
        return f"{'about ' * bool(self.planning)}{self.total_shards:,}"

    def line(self) -> str:
        seconds = max(self.seconds, 1e-9)
        padding = self.padded / max(1, self.tokens + self.padded)
        reused = f" · {self.reused:,} from the table before" if self.reused else ""
        planning = f" · totals estimated, {self.planning}" if self.planning else ""
        return (
            f"{self.rows / seconds:,.1f} docs/s · {self.tokens / seconds:,.0f} tokens/s · padding {padding:.1%} · "
            f"shards {self.shards_before + self.shards:,}/{self.shards_in_all} · errors {self.rows_error:,}"
            f"{reused}{planning}"
        )


def show_figures(line: ProgressLine, figures: Figures) -> None:
    """The figures as they are now."""
    done = figures.rows_before + figures.rows
    left = (figures.total_rows - done) * figures.seconds / max(1, figures.rows)
    line.show(done, figures.total_rows, figures.line(), left)

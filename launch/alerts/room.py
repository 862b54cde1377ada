"""Whether the disk of a run's directory has room for its next checkpoint."""

from actors.files.full_disk import size_in_words
from launch.alerts.config import DiskAlert
from launch.alerts.rules import Finding, Spells


class Room:
    """The free space of one disk, from look to look."""

    def __init__(self, rule: DiskAlert) -> None:
        self._rule, self._spells = rule, Spells()

    def finding(self, free: int | None, checkpoint: int | None) -> Finding | None:
        """What to tell, once until there is room again; does nothing where a size is not known.

        Args:
            free: bytes.
            checkpoint: bytes of the last one.
        """
        if free is None or checkpoint is None:
            return None
        needed = self._rule.checkpoints * checkpoint
        if not self._spells.begins("disk", free < needed):
            return None
        count = self._rule.checkpoints
        several = "a checkpoint takes" if count == 1 else f"{count:g} checkpoints take"
        text = (
            f"the disk of the run's directory has {size_in_words(free)} free, and {several} "
            f"{size_in_words(round(needed))}"
        )
        return Finding(rule="disk", level=self._rule.level, text=text, value=float(free))

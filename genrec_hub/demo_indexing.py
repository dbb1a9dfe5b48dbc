"""An uploaded catalogue that is being indexed: in a thread of its own, so that it can be watched and called off."""

from threading import Event, Thread

from .catalog import Catalog
from .demo_models import Lazy, Recommender


class Cancelled(Exception):
    """The visitor does not want the index any more."""


class Indexing:
    """Indexes a catalogue; begins at once.

    Args:
        load: gives the model.
        catalog: the items.

    Attributes:
        done, total: texts read so far, and of how many.
        result: the recommender over the catalogue, once there.
        error: what went wrong instead; `Cancelled` after `cancel`.
    """

    def __init__(self, load: Lazy, catalog: Catalog) -> None:
        self.done, self.total = 0, len(catalog)
        self.result: Recommender | None = None
        self.error: Exception | None = None
        self._stop, self._finished = Event(), Event()
        Thread(target=self._run, args=(load, catalog), daemon=True, name="indexing").start()

    def _run(self, load: Lazy, catalog: Catalog) -> None:
        try:
            result = load().with_catalog(catalog, self._progress)
            result("anything", top_k=1)  # the first answer makes the model's index of the items; here nobody waits for it
            self.result = result
        except Exception as error:
            self.error = error
        finally:
            self._finished.set()

    def _progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self._stop.is_set():
            raise Cancelled

    def wait(self, seconds: float) -> bool:
        """Waits for the end, this long at the most; True when it is there."""
        return self._finished.wait(seconds)

    def cancel(self) -> None:
        """Stops at the next batch of texts."""
        self._stop.set()

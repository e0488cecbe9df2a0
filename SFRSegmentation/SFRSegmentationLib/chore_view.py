"""The foot of the Set up step: what is being done, how far it is, Cancel, and the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

from SFRCore.errors import InputError, SFRError

from .chore_follower import ChoreFollower
from .chores import Chore, start_chore
from .set_up_words import progress_words

Then = Callable[[Chore], Any]


class ChoreView:
    """Runs one chore at a time and shows it. ``ui`` has progressBar, statusLabel, cancelButton, logGroup,
    logView and copyButton.

    ``onChange()`` is called when a chore begins or ends, ``onFailure(error)`` when one failed; what a chore's
    ``then`` raises goes through ``attempt``.
    """

    def __init__(
        self,
        ui: Any,
        onChange: Callable[[], Any],
        onFailure: Callable[[SFRError], Any],
        attempt: Callable[[Callable[[], Any]], Any],
    ) -> None:
        self.ui, self.what = ui, ""
        self._onChange, self._onFailure, self._attempt = onChange, onFailure, attempt
        self._follower: ChoreFollower | None = None
        self._then: Then = lambda chore: None
        self._shown = 0
        ui.cancelButton.connect("clicked()", self.cancel)
        ui.copyButton.connect("clicked()", self.copyLog)
        self._showProgress()

    @property
    def busy(self) -> bool:
        """Whether a chore is going on."""
        return self._follower is not None

    def begin(self, chore: str, what: str, then: Then, /, **arguments: Any) -> None:
        """Start a chore of ``chore_process``; ``what`` says what is done, ``then`` is called at its end.

        Raises InputError where another one is going on or it cannot be started.
        """
        if self.busy:
            raise InputError(
                "Something else is being installed or downloaded.", hint="Wait for its end, or cancel it."
            )
        self._follower = ChoreFollower(start_chore(chore, **arguments), self._ended, self._news)
        self._then, self.what, self._shown = then, what, 0
        self.say(what)
        self._showProgress()
        self._onChange()

    def say(self, words: str) -> None:
        """Show a line in place of the last one."""
        self.ui.statusLabel.text = words

    def cancel(self) -> None:
        """Stop what is being done; the second time its processes are ended."""
        if self._follower is not None:
            self._follower.cancel()
            self._news(self._follower.chore)

    def copyLog(self) -> None:
        """Copy the log to the clipboard."""
        qt.QApplication.clipboard().setText(self.ui.logView.plainText)

    def leave(self) -> None:
        """Follow nothing any more; an installation or download goes on by itself."""
        if self._follower is not None:
            self._follower.stop()

    def _news(self, chore: Chore) -> None:
        self._log(chore)
        if chore.stopping:
            self.say(_("Stopping…"))
        else:
            self.say(progress_words(chore.progress) or (chore.lines[-1] if chore.lines else self.what))
        self._showProgress(chore.progress)

    def _ended(self, chore: Chore) -> None:
        self._log(chore)
        self._follower, self.what = None, ""
        self._showProgress()
        self.say("" if chore.error is None else chore.error.message)
        if chore.error is None:
            self._attempt(lambda: self._then(chore))
        elif chore.state == "failed":
            self.ui.logGroup.collapsed = False
            self._onFailure(chore.error)
        self._onChange()

    def _log(self, chore: Chore) -> None:
        for line in chore.lines[self._shown :]:
            self.ui.logView.appendPlainText(line)
        self._shown = len(chore.lines)

    def _showProgress(self, progress: tuple[int, int] | None = None) -> None:
        self.ui.progressBar.visible = self.busy
        self.ui.cancelButton.visible = self.busy
        # Bytes of gigabytes do not fit Qt's integers; without numbers the bar only shows that it lives.
        self.ui.progressBar.maximum = 1000 if progress else 0
        self.ui.progressBar.value = round(1000 * progress[0] / max(1, progress[1])) if progress else 0

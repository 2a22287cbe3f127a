"""The job this rank belongs to: when one rank fails, stalls or vanishes, all end, and one message names it."""

import faulthandler
import os
import re
import sys
import time
from threading import Lock, Thread
from typing import NoReturn

from flare_ds.exceptions import FlareError
from flare_ds.failures import FAILED, STALLED, described, leave, say
from flare_ds.runtime.board import INTERVAL_S, Board, Notice

_LOST = re.compile(r"gloo|nccl|connection|peer|socket|store|timed? ?out", re.IGNORECASE)
"""What torch says in some hundred ways when a collective fails because another rank does."""


class Job:
    """The ranks of a job."""

    def __init__(self, board: Board, hosts: list[str]) -> None:
        self.board, self.hosts, self.rank = board, hosts, board.rank
        self.beats, self.watched = 0, False
        self._ending, self._over = Lock(), False

    def start(self) -> None:
        """Give signs of life from now on, and end this rank when another puts up a notice."""
        Thread(target=self._live, daemon=True).start()

    def finish(self) -> None:
        """All ranks are done: who leaves now is not missed."""
        self._over = True

    def named(self, ranks: list[int]) -> str:
        """`rank 1 on node2`, `ranks 3 on node1, 9 on node2`."""
        told = ", ".join(f"{rank} on {self.hosts[rank]}" for rank in ranks)
        return f"rank{'s' * (len(ranks) > 1)} {told}"

    def tell(self, error: BaseException) -> NoReturn:
        """End the job for an error of this rank; where it only follows from another rank's failure, for that."""
        if self.rank and isinstance(error, FlareError):
            time.sleep(INTERVAL_S)  # what is wrong with the settings all ranks meet at once: let rank 0 tell it
        if not self._ending.acquire(blocking=False):
            time.sleep(60)  # another thread is ending this process
        if (other := self._cause(error)) is not None:
            self._end_by(other)
        trace, message = described(error)
        self._post(f"[{self.named([self.rank])}] {message}", FAILED, before=trace)

    def stalled(self, what: str, seconds: float) -> None:
        """End the job because this rank's work stands still.

        It returns where this rank waits for others that are behind, live, and would end the job themselves if their
        work stood still: each goes over its rows at its own pace, and only they know theirs.
        """
        silent = self.board.silent()
        behind, watched = ([], False) if silent else self.board.behind()
        if behind and watched and self.rank not in behind:
            return
        if not self._ending.acquire(blocking=False):
            time.sleep(60)
        if silent:
            who = f"no sign of life from {self.named(silent)}: stopped, or in a call that holds the GIL"
        elif behind:
            who = f"waiting for {self.named(behind)}"
        else:
            who = "all ranks are alive and at the same point"
        faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__ or 2)
        fix = "see the stacks of every rank above; DEEPSPEED_TIMEOUT=MINUTES in the environment allows more time"
        told = f"[{self.named([self.rank])}] {what} has made no progress for {seconds:.0f} s; {who}\n  fix: {fix}"
        self._post(told, STALLED)

    def _cause(self, error: BaseException) -> Notice | None:
        """The failure of another rank that this error follows from, as far as can be told."""
        lost = error.__cause__ or error  # a time-out that has been put into words
        if not (isinstance(lost, RuntimeError) and _LOST.search(str(lost))):
            return None
        deadline = time.monotonic() + 2 * INTERVAL_S
        while time.monotonic() < deadline:
            try:
                if (notice := self.board.notice()) is not None:
                    return notice
            except RuntimeError:  # the board is gone with rank 0
                break
            time.sleep(INTERVAL_S / 10)
        return self._vanished(self.board.silent())

    def _vanished(self, ranks: list[int]) -> Notice | None:
        if not ranks:
            return None
        was = "was" if len(ranks) == 1 else "were"
        told = f"{self.named(ranks)} {was} ended from outside (killed, out of memory) or by a crash in native code"
        fix = "check that host's log (dmesg shows out-of-memory kills), then run the same command again to continue"
        return self.board.post(Notice(self.rank, self.hosts[self.rank], f"{told}\n  fix: {fix}", FAILED))

    def _post(self, message: str, status: int, *, before: str = "") -> NoReturn:
        mine = Notice(self.rank, self.hosts[self.rank], message, status)
        up = self.board.post(mine)
        if up != mine:
            self._end_by(up)
        say(message, before=before)
        self.board.wait_for_readers()
        leave(status)

    def _end_by(self, notice: Notice) -> NoReturn:
        """End because of a notice; who wrote it has told its own host, and each other host is told by one rank."""
        self.board.read()
        if notice.status == STALLED and notice.rank != self.rank:
            faulthandler.dump_traceback(all_threads=True, file=sys.__stderr__ or 2)
        first_here = os.environ.get("LOCAL_RANK", "0") == "0" and notice.host != self.hosts[self.rank]
        if notice.rank == self.rank or first_here:
            say(notice.message)
        leave(notice.status)

    def _live(self) -> None:
        count = 0
        while not self._over:
            count += 1
            try:
                self.board.sign(count, self.beats, self.watched)
                notice = self.board.notice()
            except RuntimeError:
                self._lost_board()
                return
            if notice is not None and self._ending.acquire(blocking=False):
                self._end_by(notice)
            time.sleep(INTERVAL_S)

    def _lost_board(self) -> None:
        """Rank 0, which keeps the board, is gone: well unless this rank still works a while later."""
        time.sleep(10 * INTERVAL_S)
        if not self._over and self._ending.acquire(blocking=False):
            notice = self._vanished([0])
            if self.rank == 1 and notice is not None:  # one of those that are left tells it
                say(notice.message)
            leave(FAILED)

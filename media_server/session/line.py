"""Who carries the sound of a call: one connection after another, and nobody in between.

connecting --stands--> carried --lost--> absent --another stands--> carried
     |                    |                '-- none within `call.resume_s`: over
     '-- never: over      |-- another stands: the old one is closed
                          '-- the caller says goodbye: over
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from media_server.audio.live_queue import LiveQueue
from media_server.audio.playout import Playout
from media_server.errors import PeerGoneError
from media_server.session.inbox import Connected, Disconnected, Happening
from media_server.session.media import Connection, Entrance, Keypad, Media

Start: TypeAlias = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Line:
    """The connections of one call.

    Attributes:
        connection: the one that carries the call; None: none does, yet or any more.
        coming: one that connects, and will take its place.
        lost: when the last one was lost, on the loop's clock, and why; None: none was, or another came.
    """

    def __init__(
        self,
        *,
        call_id: str,
        hearing: LiveQueue,
        playout: Playout,
        post: Callable[[Happening], None],
    ) -> None:
        """Prepare to be connected.

        Args:
            call_id: for the names of tasks.
            hearing: where the sound goes.
            playout: where it comes from.
            post: takes what happens.
        """
        self.connection: Connection | None = None
        self.coming: Connection | None = None
        self.lost: tuple[float, str] | None = None
        self._call_id = call_id
        self._playout = playout
        self._post = post
        self._entrance = Entrance(hearing)
        self._start: Start | None = None

    def attach(self, media: Media) -> None:
        """Let a media connect, in the place of one that is still at it; once it stands, it waits to be admitted."""
        before, self.coming = self.coming, Connection(media)
        if isinstance(media, Keypad):
            media.on_digit = self._post
        if self._start is not None:
            if before is not None and before.task is not None:
                before.task.cancel()
                before.task = None  # see `_carry`, which may not have begun
                self._start(before.media.close(), f"close {self._call_id}")  # a task that has not begun closes nothing
            self._begin(self.coming, self._start)

    def open(self, start: Start) -> None:
        """Begin to connect. `start`: starts a task of the call, by its name."""
        self._start = start
        if self.coming is not None:
            self._begin(self.coming, start)

    def admit(self, coming: Connection) -> bool:
        """Let what was coming carry the call, and close what did before; return whether the call is resumed."""
        before, self.connection, self.coming = self.connection, coming, None
        if before is not None and before.task is not None:
            before.task.cancel()
        resumed = before is not None or self.lost is not None
        self.lost = None
        coming.stood_s = asyncio.get_running_loop().time()
        self._entrance = self._entrance.follow()
        coming.admitted.set_result(self._entrance)
        return resumed

    def ends_with(self, gone: Disconnected, *, resumable: bool) -> bool:
        """Take the end of a media; return whether it is the end of the call. If not, another is waited for."""
        if gone.connection is self.coming:
            self.coming = None
            return self.connection is None and self.lost is None
        if gone.connection is not self.connection:
            return False
        # Who has another way to us already closes the old one.
        if self.coming is None and (gone.goodbye or not resumable):
            return True
        self.connection = None
        self.lost = (asyncio.get_running_loop().time(), gone.reason)
        return False

    def hear_silence(self, seconds: float, now_s: float) -> None:
        """Let the ear hear that nobody is there: that ends a turn which was cut off."""
        self._entrance.put_silence(seconds, now_s)

    async def close(self) -> None:
        """Close what was still coming; the tasks of the call are over."""
        coming = self.coming
        # What knows the call goes with it: the garbage collector is seldom asked.
        self.connection = self.coming = self._start = None
        if coming is not None:
            coming.task = None
            await coming.media.close()

    def _begin(self, connection: Connection, start: Start) -> None:
        connection.task = start(self._carry(connection), f"media {self._call_id}")

    async def _carry(self, connection: Connection) -> None:
        media = connection.media
        try:
            await media.connect()
            self._post(Connected(connection))
            await media.run(await connection.admitted, self._playout)
            self._post(Disconnected(connection, "the caller hung up", goodbye=True))
        except PeerGoneError as error:
            self._post(Disconnected(connection, str(error), goodbye=False))
        finally:
            connection.task = None  # a cancelled task knows its connection: only the garbage collector would find both
            await media.close()

"""The embedded agent: rules and a scenario in the place of a language model, so that a call works without any."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from media_server.conversation import Item
from media_server.engines.protocols import Finished, LlmDelta, LlmRequest, TextDelta
from media_server.engines.scenario import Scenario, read_scenario
from media_server.engines.scenario_dialogue import Dialogue
from media_server.errors import EngineError

SLICE_S = 0.002
"""How long the replay of a conversation may hold the loop. An order of a hundred turns takes 5 ms, but a client can put
in a thousand long messages; to leave out the first of them would be to forget what was ordered."""


class RulesLlm:
    """Runs one scenario, such as an order at a coffee bar.

    The reply is a pure function of the conversation's items. Instructions, tools and temperature are ignored: there is
    no model to read them.

    Args:
        scenario: the scenario's TOML file.
    """

    name = "rules"

    def __init__(self, *, scenario: Path) -> None:
        self._path = scenario
        self._scenario: Scenario | None = None
        self.why = f"rules run the scenario {scenario.stem!r}: embedded, needs no model, no network and no GPU"

    @property
    def scenario(self) -> Scenario:
        """Return the scenario, for its greeting and its grammar.

        Raises:
            EngineError: it is not loaded.
        """
        if self._scenario is None:
            raise EngineError(f"the scenario {str(self._path)!r} is not loaded; call load() first")
        return self._scenario

    @property
    def greeting(self) -> str:
        """Return the line with which a call begins."""
        return self.scenario.greeting

    async def load(self) -> None:
        """Read the scenario.

        Raises:
            ConfigError: it cannot be read, or something in it is wrong.
        """
        self._scenario = await asyncio.to_thread(read_scenario, self._path)

    async def close(self) -> None:
        """Give everything back, of which there is nothing but the scenario."""
        self._scenario = None

    async def reply(self, request: LlmRequest) -> AsyncGenerator[LlmDelta, None]:
        """Yield the reply word by word, then `Finished`."""
        words = (await self._replay(request.items)).split()
        written = words if request.max_tokens is None else words[: request.max_tokens]
        for n, word in enumerate(written):
            yield TextDelta(f" {word}" if n else word)
            await asyncio.sleep(0)  # or a consumer that never waits would not let a cancellation in
        yield Finished("stop" if len(written) == len(words) else "length")

    async def _replay(self, items: tuple[Item, ...]) -> str:
        """Return the reply to a conversation, giving way to others while it is replayed."""
        clock = asyncio.get_running_loop().time
        dialogue = Dialogue(self.scenario)
        until_s = clock() + SLICE_S
        for item in items:
            dialogue.take(item)
            if clock() >= until_s:
                await asyncio.sleep(0)
                until_s = clock() + SLICE_S
        return dialogue.reply()

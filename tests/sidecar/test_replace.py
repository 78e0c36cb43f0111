"""A bank replaced while engines send: open turns stay with theirs, new ones begin with the new one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import builders
import httpx
import pytest
from builders import EMOTIONS, make_bank
from engine import PATIENCE, Engine, Turn, make_frame, make_turn, numbers, whole
from sender import Sender, account
from structlog.testing import capture_logs

from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from monitor.probes.bank import Bank

POLICY = "version: 1\npolicies: [{name: desk, stance: neutral, turn: {false_alarm_rate: 0.02}}]\n"
SUCCESSFUL = "affect_config_last_reload_successful"


@pytest.fixture(scope="module")
def banks(small_bank: Bank) -> dict[str, Bank]:
    """The bank, one of other probes, and one of other emotions, all of the same model and layers."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(builders, "EMOTIONS", (*EMOTIONS, ("calm", "warmth"), ("anger", "contagion")))
        wider = make_bank(seed=2)
    return {"old": small_bank, "probes": make_bank(seed=1), "emotions": wider}


@pytest.fixture(scope="module")
def constant(
    banks: dict[str, Bank], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, Turn], ingest_pb2.Assessment]]:
    """What a sidecar that is never reloaded says of a turn, by the name of its bank."""
    running: list[Sidecar] = []
    engines: dict[str, Engine] = {}
    streams, told = {}, {}
    for name, bank in banks.items():
        folder = tmp_path_factory.mktemp(name)
        bank.save(folder)
        (folder / "policy.yaml").write_text(POLICY)
        flags = {"bank": str(folder), "policy": folder / "policy.yaml", "ingest": f"unix://{folder}/s", "http_port": 0}
        running.append(Sidecar(load_settings(None, {**flags, "drain_seconds": 0.0})))
        engines[name] = Engine(f"unix://{folder}/s")
        streams[name] = engines[name].stream(bank)

    def ask(name: str, turn: Turn) -> ingest_pb2.Assessment:
        key = name, turn.request_id
        if key not in told:
            told[key] = streams[name].send(whole(turn)).assessments[0]
        return told[key]

    yield ask
    for engine in engines.values():
        engine.close()
    for sidecar in running:
        sidecar.stop()


class Place:
    """A sidecar whose files can be changed.

    Args:
        folder: Folder of its bank, policy and socket.
        banks: Banks it may have.
        flags: Settings of the sidecar.
    """

    def __init__(self, folder: Path, banks: dict[str, Bank], **flags: Any) -> None:
        self.folder, self.banks = folder, banks
        self.address = f"unix://{folder}/s"
        self.bank = folder / "bank"
        self.policy = folder / "policy.yaml"
        banks["old"].save(self.bank)
        self.policy.write_text(POLICY)
        common = {"bank": str(self.bank), "policy": self.policy, "ingest": self.address, "http_port": 0}
        self.sidecar = Sidecar(load_settings(None, {**common, "drain_seconds": 0.0, **flags}))

    def load(self, name: str) -> bool:
        """Puts a bank into the folder and reloads; returns whether it was taken."""
        self.banks[name].save(self.bank)
        return self.sidecar.reload()

    def of(self, assessment: ingest_pb2.Assessment) -> str:
        """Name of the bank that a turn began with."""
        (name,) = (name for name, bank in self.banks.items() if assessment.turn_id.startswith(bank.card.bank_id + "-"))
        return name


@pytest.fixture
def place(tmp_path: Path, banks: dict[str, Bank]) -> Iterator[Callable[..., Place]]:
    """Makes a sidecar whose files can be changed."""
    made: list[Place] = []

    def make(**flags: Any) -> Place:
        made.append(Place(tmp_path, banks, **flags))
        return made[-1]

    yield make
    for each in made:
        each.sidecar.stop()


@pytest.fixture
def engine(place: Any) -> Iterator[Callable[[Place], Engine]]:  # noqa: ARG001 - sidecars end after engines
    """Makes engines of the stock stub."""
    made: list[Engine] = []

    def make(at: Place) -> Engine:
        made.append(Engine(at.address))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def sender(place: Any, small_bank: Bank) -> Iterator[Callable[..., Sender]]:  # noqa: ARG001 - as above
    """Makes clients."""
    made: list[Sender] = []

    def make(at: Place, **options: Any) -> Sender:
        made.append(Sender(at.address, small_bank, **options))
        assert made[-1].client.wait_connected(PATIENCE)
        return made[-1]

    yield make
    for each in made:
        each.client.close(0.2)


@pytest.fixture(scope="module")
def turns(small_bank: Bank) -> list[Turn]:
    """Turns of different lengths and affect."""
    return [
        make_turn(small_bank, f"turn {n}", user=0.2 * n, assistant=0.1 * n, words=10 + n, seed=n) for n in range(20)
    ]


def same(found: ingest_pb2.Assessment, expected: ingest_pb2.Assessment) -> bool:
    """Whether two assessments have the same numbers, of the same things."""
    return numbers(found) == pytest.approx(numbers(expected), rel=1e-3, abs=1e-4)


class TestOpenTurns:
    """Turns that are under way."""

    @pytest.mark.parametrize("new", ["probes", "emotions"])
    def test_stay_with_their_bank(
        self, new: str, place: Any, engine: Any, constant: Any, turns: list[Turn], small_bank: Bank
    ) -> None:
        """In the same frames, turns of before are scored and judged by the old bank and turns of after by the new."""
        here = place()
        stream = engine(here).stream(small_bank)
        before, after, later = turns[:3], turns[3:6], turns[6]
        stream.send(make_frame(*[(turn, 0, 15) for turn in before], events=[turn.start for turn in before]))

        assert here.load(new)
        middle = [(turn, 15, 25) for turn in before] + [(turn, 0, 20) for turn in after]
        assert not stream.send(make_frame(*middle, events=[turn.start for turn in after])).faults
        rest = [(turn, 25, turn.length) for turn in before] + [(turn, 20, turn.length) for turn in after]
        answer = stream.send(make_frame(*rest[::-1], events=[turn.end for turn in (*before, *after)]))
        last = stream.send(whole(later)).assessments[0]

        assert not answer.faults
        assert [here.of(each) for each in (*answer.assessments, last)] == ["old"] * 3 + [new] * 4
        for turn, found in zip((*before, *after, later), (*answer.assessments, last), strict=True):
            assert account(found) == {"total": turn.length, "scored": turn.length}
            assert same(found, constant(here.of(found), turn))
            assert set(found.emotions) == {emotion.name for emotion in here.banks[here.of(found)].card.emotions}

    def test_replay_gaps_and_silence_after_it(
        self, place: Any, engine: Any, turns: list[Turn], small_bank: Bank
    ) -> None:
        """Positions, gaps and the account of a turn that outlives its bank go on where they were."""
        here, turn = place(), turns[0]
        stream = engine(here).stream(small_bank)
        stream.send(make_frame((turn, 0, 15), events=[turn.start]))
        for name in ("probes", "emotions", "old", "probes"):
            assert here.load(name)

        stream.send(make_frame((turn, 5, 18), events=[turn.gap(18, 20)]))
        ended = stream.send(make_frame((turn, 21, turn.length), events=[turn.end])).assessments[0]

        assert here.of(ended) == "old"
        assert account(ended) == {"total": turn.length, "scored": turn.length - 3, "dropped": 2, "untold": 1}
        assert here.sidecar.metrics.value("affect_tokens_replayed_total") == 10
        assert here.sidecar.pipeline.status()["open_turns"] == 0

    def test_many_banks_under_load(self, place: Any, sender: Any, constant: Any, turns: list[Turn]) -> None:
        """While engines send, banks come and go: no frame is lost, and each turn is its own bank's throughout."""
        here, stop = place(max_open_turns=64), threading.Event()
        sending, taken = sender(here), list[bool]()

        def replace() -> None:
            names = ["probes", "emotions", "old"]
            while not stop.is_set():
                taken.append(here.load(names[len(taken) % 3]))

        replacing = threading.Thread(target=replace)
        replacing.start()
        sent: list[Turn] = []
        while len(sent) < 8 * len(turns) or len(taken) < 4:
            part = [Turn(f"{len(sent)} {turn.request_id}", *_content(turn)) for turn in turns]
            sending.send(part, step=4)
            sending.flush()
            sent += part
        stop.set()
        replacing.join()

        found = sending.ended(sent)
        assert all(taken)
        for turn, assessment in zip(sent, found, strict=True):
            assert account(assessment) == {"total": turn.length, "scored": turn.length}
            original = next(each for each in turns if turn.request_id.endswith(f" {each.request_id}"))
            assert same(assessment, constant(here.of(assessment), original))
        assert len({here.of(assessment) for assessment in found}) > 1
        counters = sending.client.counters
        assert (counters.faults, counters.reconnects, counters.dropped_tokens) == (0, 0, 0)
        assert here.sidecar.metrics.value("affect_tokens_scored_total") == sum(turn.length for turn in sent)

    def test_are_given_up_by_their_bank(
        self, place: Any, engine: Any, turns: list[Turn], small_bank: Bank, eventually: Any
    ) -> None:
        """A turn that falls silent and whose bank is gone is given up like any other."""
        here = place(turn_timeout_seconds=1)
        stream = engine(here).stream(small_bank)
        stream.send(make_frame((turns[0], 0, 15), events=[turns[0].start]))
        assert here.load("probes")

        (given_up,) = eventually(here.sidecar.pipeline.recent)

        assert here.of(given_up) == "old"
        assert "abandoned" in given_up.marks
        assert here.sidecar.pipeline.status()["open_turns"] == 0

    def test_are_judged_by_new_policies(self, place: Any, engine: Any, turns: list[Turn], small_bank: Bank) -> None:
        """Bank and policies change together: the bank of an open turn stays, its policy is the new one."""
        here, turn = place(), turns[0]
        stream = engine(here).stream(small_bank)
        stream.send(make_frame((turn, 0, 15), events=[turn.start]))
        here.policy.write_text(POLICY.replace("desk", "counter"))
        assert here.load("probes")

        ended = stream.send(make_frame((turn, 15, turn.length), events=[turn.end])).assessments[0]

        assert (here.of(ended), ended.policy) == ("old", "counter")
        assert here.sidecar.metrics.value("affect_turns_total", "counter") == 1


def _content(turn: Turn) -> tuple[Any, ...]:
    return turn.token_ids, turn.rows, turn.prompt_length


class TestReload:
    """What a reload takes."""

    @pytest.mark.parametrize("file", ["bank.safetensors", "bank.json"])
    def test_a_truncated_bank_is_refused(
        self, file: str, place: Any, engine: Any, constant: Any, turns: list[Turn], small_bank: Bank
    ) -> None:
        """Half a file changes nothing but the metric, and the whole one is taken when it is there."""
        here = place()
        stream = engine(here).stream(small_bank)
        stream.send(make_frame((turns[0], 0, 15), events=[turns[0].start]))
        here.banks["probes"].save(here.bank)
        content = (here.bank / file).read_bytes()
        (here.bank / file).write_bytes(content[: len(content) // 2])

        answer = httpx.post(here.sidecar.http_url + "/-/reload", timeout=PATIENCE)
        ended = stream.send(make_frame((turns[0], 15, turns[0].length), events=[turns[0].end])).assessments[0]
        new = stream.send(whole(turns[1])).assessments[0]

        assert answer.status_code == 400
        assert here.sidecar.metrics.value(SUCCESSFUL) == 0
        assert [here.of(ended), here.of(new)] == ["old", "old"]
        assert same(ended, constant("old", turns[0]))
        (here.bank / file).write_bytes(content)
        assert here.sidecar.reload()
        assert here.sidecar.metrics.value(SUCCESSFUL) == 1
        assert here.of(stream.send(whole(turns[2])).assessments[0]) == "probes"

    @pytest.mark.parametrize("other", [{"layers": (2,)}, {"layers": (1,)}, {"hidden_size": 24}, {"depth": 3}], ids=str)
    def test_a_bank_of_other_rows_is_refused(
        self, other: dict[str, Any], place: Any, engine: Any, turns: list[Turn], small_bank: Bank
    ) -> None:
        """Engines send what they were asked for: another model or other layers need a restart, as the log says."""
        here = place()
        stream = engine(here).stream(small_bank)
        make_bank(**other).save(here.bank)

        with capture_logs() as logs:
            assert not here.sidecar.reload()

        (entry,) = [entry for entry in logs if entry["event"] == "admin"]
        assert (entry["outcome"], entry["field"]) == ("refused", "bank")
        assert "restart the sidecar" in entry["message"]
        assert "tiny, layers" in entry["message"]
        assert here.sidecar.metrics.value(SUCCESSFUL) == 0
        assert here.of(stream.send(whole(turns[0])).assessments[0]) == "old"

    @pytest.mark.parametrize("flags", [{}, {"projection": True}], ids=str)
    def test_the_same_bank_changes_nothing(
        self, flags: dict[str, Any], place: Any, sender: Any, constant: Any, turns: list[Turn]
    ) -> None:
        """Reloading what is loaded already breaks no stream and no turn."""
        here = place(**flags)
        sending, generation = sender(here), here.sidecar.pipeline.generation
        sending.start(*turns)
        sending.rows(*[(turn, 0, 15) for turn in turns])
        sending.flush()
        assert here.load("old")
        sending.rows(*[(turn, 15, turn.length) for turn in turns])
        sending.end(*turns)

        found = sending.ended(turns)

        assert here.sidecar.pipeline.generation is generation
        assert sending.client.counters.reconnects == 0
        for turn, assessment in zip(turns, found, strict=True):
            assert account(assessment) == {"total": turn.length, "scored": turn.length}
            expected = numbers(constant("old", turn))
            assert numbers(assessment) == pytest.approx(expected, rel=5e-3, abs=0.02)

    def test_pages_name_the_new_bank(self, place: Any, engine: Any) -> None:
        """Metrics, the landing page and Describe tell which bank is in force."""
        here = place()
        assert here.load("emotions")
        card = here.banks["emotions"].card

        infos = [
            sample.labels["bank_id"]
            for family in here.sidecar.metrics.collect()
            for sample in family.samples
            if sample.name == "affect_bank_info"
        ]
        told = engine(here).ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE)

        assert infos == [card.bank_id] == [told.bank_id]
        assert httpx.get(here.sidecar.http_url, timeout=PATIENCE).json()["bank"] == card.bank_id


class TestProjected:
    """Streams whose rows went through the probes of a bank that is gone."""

    @pytest.mark.parametrize("flags", [{}, {"shared_memory_bytes": 1 << 16}], ids=str)
    def test_come_back_with_the_new_probes(
        self, flags: dict[str, Any], place: Any, sender: Any, constant: Any, turns: list[Turn], eventually: Any
    ) -> None:
        """They are ended, open turns begin anew and say what was lost, later ones are whole; every account is exact."""
        here = place(projection=True, **flags)
        sending, (under_way, later) = sender(here), (turns[:8], turns[8:])
        sending.start(*under_way)
        sending.rows(*[(turn, 0, 10) for turn in under_way])
        sending.flush()

        assert here.load("emotions")
        sending.rows(*[(turn, 10, 15) for turn in under_way])
        eventually(lambda: sending.client.counters.reconnects == 1)
        assert sending.client.wait_connected(PATIENCE)
        sending.rows(*[(turn, 15, turn.length) for turn in under_way])
        sending.end(*under_way)
        sending.send(later)
        found = sending.ended(turns)

        assert {here.of(assessment) for assessment in found} == {"emotions"}
        for turn, assessment in zip(under_way, found, strict=False):
            lost = {"total": turn.length, "scored": turn.length - 15, "restarted": 15}
            assert account(assessment) == lost
            assert "partial" in assessment.marks
        for turn, assessment in zip(later, found[8:], strict=True):
            assert account(assessment) == {"total": turn.length, "scored": turn.length}
            expected = numbers(constant("emotions", turn))
            assert numbers(assessment) == pytest.approx(expected, rel=5e-3, abs=0.02)
        assert sending.client.counters.faults == 0
        assert here.sidecar.pipeline.status()["open_turns"] == 0

    def test_under_load(self, place: Any, sender: Any, turns: list[Turn]) -> None:
        """Whenever the bank is replaced, whatever is on its way, each request ends with an exact account."""
        here = place(projection=True)
        sending, sent = sender(here), list[Turn]()
        for number, name in enumerate(("probes", "emotions", "old", "probes")):
            part = [Turn(f"{number} {turn.request_id}", *_content(turn)) for turn in turns]
            sent += part
            loading = threading.Thread(target=here.load, args=(name,))
            loading.start()
            sending.send(part, step=3)
            loading.join()
        sending.flush()

        for turn in sent:
            for assessment in sending.told[turn.request_id]:
                counted = account(assessment)
                assert counted["total"] == turn.length
                assert set(counted) <= {"total", "scored", "restarted"}
        assert sending.told.keys() == {turn.request_id for turn in sent}
        assert here.sidecar.pipeline.status()["open_turns"] == 0
        assert sending.client.counters.faults == 0
        assert sending.client.counters.dropped_tokens == 0

    def test_leave_streams_of_hidden_states_alone(self, place: Any, sender: Any, turns: list[Turn]) -> None:
        """A stream of hidden states beside them is not ended: its turns of before and after are whole."""
        here = place()
        sending = sender(here)
        sending.start(turns[0])
        sending.rows((turns[0], 0, 15))
        sending.flush()
        assert here.load("probes")
        sending.rows((turns[0], 15, turns[0].length))
        sending.end(turns[0])
        sending.send(turns[1:3])

        found = sending.ended(turns[:3])

        assert [here.of(assessment) for assessment in found] == ["old", "probes", "probes"]
        assert sending.client.counters.reconnects == 0

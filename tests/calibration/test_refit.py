"""A bank's reference from an operator's own turns: approved conversations and baseline files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from builders import (
    EMOTIONS,
    QUANTILE_95,
    REFERENCE_TURNS,
    SLOPE,
    make_bank,
    make_battery,
    make_card,
    make_stats,
    make_tensors,
)
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import CONTEXT, DEPTH, HIDDEN, make_model, words

from monitor.assess.baseline import baseline_line
from monitor.assess.overindex import Assessor, certified_p, exceedance_bound
from monitor.calibration.reference import ReferenceTurns
from monitor.calibration.refit import (
    LEAST_TURNS,
    Gathered,
    approved_turns,
    baseline_turns,
    certified_rates,
    refit,
)
from monitor.capture.identity import template_hash, tokenizer_hash, weights_fingerprint
from monitor.errors import CorpusError, ModelMismatchError
from monitor.policy.schema import load_policy
from monitor.probes.bank import Bank, Stance, load_bank, seal
from monitor.sidecar.offline import OfflineScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

BANK = make_bank()
COLUMNS = BANK.columns.total
NEUTRAL, SUPPORTIVE, CRISIS = range(3)
LAYERS = (1, 3)


def traffic(count: int, last: int = SUPPORTIVE, shift: float = 0.0, seed: int = 0, bank: Bank = BANK) -> ReferenceTurns:
    """Turns like those of ``make_bank``, whose assistant shows more or less affect than that bank's reference."""
    rng, columns, tensors = np.random.default_rng(seed), bank.columns.total, bank.tensors
    user = rng.normal(size=(count, columns))
    assistant = SLOPE * user + rng.normal(size=(count, columns)) + shift
    return ReferenceTurns(
        tensors.turn_means[0] + tensors.turn_scales[0] * user,
        tensors.turn_means[1] + tensors.turn_scales[1] * assistant,
        rng.integers(8, 200, count),
        np.full(count, last),
        np.full(count, last),
    )


def joined(*parts: ReferenceTurns) -> ReferenceTurns:
    """Turns one after the other."""
    return ReferenceTurns(*(np.concatenate(each) for each in zip(*parts, strict=True)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file turns are said to come from."""
    file = tmp_path_factory.mktemp("turns") / "turns.jsonl"
    file.write_text("turns\n")
    return file


def fitted(place: Path, *parts: ReferenceTurns, bank: Bank = BANK) -> Bank:
    """A bank refitted to some turns."""
    return refit(bank, Gathered(joined(*parts), "turns of a test", place))


def judged(bank: Bank, turns: ReferenceTurns, stance: Stance) -> np.ndarray:
    """Over-index and p-value of affect, of the twin and of each family, of many turns, [N, T, 2]."""
    assessor = Assessor(bank)
    found = []
    for user, assistant, tokens in zip(turns.user, turns.assistant, turns.tokens, strict=True):
        raw = {"user": user.astype(np.float32), "assistant": assistant.astype(np.float32)}
        stats = make_stats(bank)._replace(**raw, assistant_tokens=int(tokens))
        assessed = assessor.assess(stats, stance)
        excesses = (assessed.affect, assessed.twin, *assessed.families.values())
        found.append([(excess.over_index, excess.p_value) for excess in excesses])
    return np.array(found)


class TestRefit:
    """A bank with another reference."""

    def test_leaves_the_probes_and_seals_a_bank_that_loads(self, place: Path, tmp_path: Path) -> None:
        """Directions, centres, scales and twin stay bit for bit; the bank has another id, loads and verifies."""
        bank = fitted(place, traffic(60))
        bank.save(tmp_path / "bank")
        loaded = load_bank(str(tmp_path / "bank"))
        assert loaded.card == bank.card
        assert loaded.card.bank_id != BANK.card.bank_id
        assert loaded.probes == bank.probes == BANK.probes
        assert loaded.card.validated
        for name in ("directions", "centres", "scales", "twin_tokens", "twin_weights"):
            np.testing.assert_array_equal(getattr(loaded.tensors, name), getattr(BANK.tensors, name), err_msg=name)

    def test_of_other_probes_has_another_name_for_them(self) -> None:
        """Banks whose probes differ are told apart, so that nobody mixes their scores."""
        assert make_bank(seed=1).probes != BANK.probes

    @given(st.integers(0, 10_000), st.floats(-3, 3), st.sampled_from([0, 1]))
    def test_leaves_every_probability(self, seed: int, shift: float, role: int) -> None:
        """The same raw scores have the same emotion probabilities before and after, on either side."""
        raw = (np.random.default_rng(seed).normal(0, 3, BANK.columns.total) + shift).astype(np.float32)
        before, after = (
            Assessor(bank).probabilities(Assessor(bank).standardise(raw, role), role) for bank in (BANK, MOVED)
        )
        assert list(after) == [name for name, _ in EMOTIONS]
        assert after == pytest.approx(before, abs=1e-5)

    def test_takes_what_it_was_given_for_ordinary(self, place: Path) -> None:
        """An assistant warmer than the old reference alarms by the old bank and not by the new one, nor do its like."""
        bank = fitted(place, traffic(300, shift=3.0))
        fresh = traffic(400, shift=3.0, seed=1)
        assert (judged(BANK, fresh, Stance.NEUTRAL)[:, 0, 1] <= 0.05).mean() > 0.5
        assert (judged(bank, fresh, Stance.NEUTRAL)[:, 0, 1] <= 0.05).mean() <= 0.05
        colder = judged(bank, traffic(400, shift=0.0, seed=1), Stance.NEUTRAL)
        assert np.median(colder[:, 0, 0]) == pytest.approx(-QUANTILE_95 - 3.0, abs=0.5)

    def test_standardises_by_the_new_turns_alone(self, place: Path) -> None:
        """Mean and spread of the new turns are 0 and 1, whatever else the reference keeps."""
        new = traffic(80, shift=2.0)
        bank = fitted(place, new)
        for role, raw in enumerate((new.user, new.assistant)):
            standard = (raw - bank.tensors.turn_means[role]) / bank.tensors.turn_scales[role]
            np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(standard.std(axis=0), 1, atol=1e-5)

    def test_keeps_the_earlier_reference_where_there_are_too_few(self, place: Path) -> None:
        """Under a stance with fewer than 50 new turns every turn is judged as before, though the units are others."""
        bank = fitted(place, traffic(120, shift=2.0), traffic(LEAST_TURNS - 1, last=CRISIS, seed=2))
        assert bank.card.reference.turns == {
            Stance.NEUTRAL: 169, Stance.SUPPORTIVE: 169, Stance.CRISIS: REFERENCE_TURNS[Stance.CRISIS],
        }  # fmt: skip
        assert "fewer than 50 for crisis, which keeps the reference" in bank.card.reference.source
        assert BANK.card.bank_id in bank.card.reference.source
        turns = traffic(60, seed=3, shift=1.0)
        np.testing.assert_allclose(judged(bank, turns, Stance.CRISIS), judged(BANK, turns, Stance.CRISIS), atol=1e-3)

    def test_stores_the_turns_it_is_judged_by(self, place: Path) -> None:
        """New turns, and the old ones of a stance that kept them, stand in the bank with their tokens and stance."""
        new = traffic(60, shift=2.0)
        tensors, old = fitted(place, new).tensors, BANK.tensors
        kept = old.reference_stance >= CRISIS
        assert tensors.reference_stance.tolist() == [*new.stance, *old.reference_stance[kept]]
        assert tensors.reference_tokens.tolist() == [*new.tokens, *old.reference_tokens[kept]]
        for role, name in enumerate(("reference_user", "reference_assistant")):
            raw = getattr(tensors, name) * tensors.turn_scales[role] + tensors.turn_means[role]
            before = getattr(old, name)[kept] * old.turn_scales[role] + old.turn_means[role]
            np.testing.assert_allclose(raw, np.concatenate([new[role], before]), atol=1e-4)

    def test_judges_the_other_stances_by_the_new_turns_alone(self, place: Path) -> None:
        """The old turns of a stance that lacks new ones touch no other stance, in whatever unit they come."""
        new = traffic(120, shift=2.0)
        bank, enough = fitted(place, new), fitted(place, new._replace(stance=np.full(120, CRISIS)))
        turns = traffic(60, seed=3, shift=2.5)
        for stance in (Stance.NEUTRAL, Stance.SUPPORTIVE):
            np.testing.assert_allclose(judged(bank, turns, stance), judged(enough, turns, stance), atol=1e-6)
        assert bank.card.reference.turns[Stance.NEUTRAL] == 120
        assert bank.card.reference.turns[Stance.CRISIS] == REFERENCE_TURNS[Stance.CRISIS]
        assert enough.card.reference.turns == dict.fromkeys(Stance, 120)
        assert enough.card.reference.source == "turns of a test"

    def test_may_be_done_again(self, place: Path) -> None:
        """A reference kept once is kept again by the next refit, and judges its stance as before."""
        once = fitted(place, traffic(120, shift=2.0))
        twice = fitted(place, traffic(90, shift=-1.0, seed=4), bank=once)
        turns = traffic(60, seed=3)
        assert twice.card.reference.turns[Stance.CRISIS] == REFERENCE_TURNS[Stance.CRISIS]
        np.testing.assert_allclose(judged(twice, turns, Stance.CRISIS), judged(BANK, turns, Stance.CRISIS), atol=1e-3)

    def test_needs_fifty_turns_of_some_stance(self, place: Path) -> None:
        """Too few turns are refused with the file, how many there are and how many are needed."""
        with pytest.raises(CorpusError, match="holds 49 turns where a stance needs 50") as caught:
            fitted(place, traffic(LEAST_TURNS - 1))
        assert caught.value.field == str(place)
        assert fitted(place, traffic(LEAST_TURNS, last=NEUTRAL)).card.reference.turns[Stance.NEUTRAL] == LEAST_TURNS

    def test_drops_rows_that_the_old_reference_made(self, place: Path) -> None:
        """Rows 6, 7, 8 and 11 of the battery, whatever their letter, no longer hold; all others stay as they are."""
        numbers = ("1a", "2", "6", "7a", "7e", "8", "9", "11", "12a", "16", "17", "x")
        battery = make_battery(**dict.fromkeys(numbers, 0.5))
        bank = seal({**make_card(), "battery": battery, "validated": False}, make_tensors())
        card = fitted(place, traffic(60), bank=bank).card
        assert [row.number for row in card.battery] == ["1a", "2", "9", "12a", "16", "17", "x"]
        assert set(card.battery) <= set(bank.card.battery)
        assert card.text_equivalent == bank.card.text_equivalent
        assert not card.validated

    def test_says_where_it_comes_from(self, place: Path) -> None:
        """The card names the source in words and the file by its hash, and keeps the hashes of the corpus."""
        card = fitted(place, traffic(60)).card
        assert card.reference.source.startswith("turns of a test")
        assert set(card.corpus_sha256) == {"texts", "reference"}
        assert card.corpus_sha256["texts"] == BANK.card.corpus_sha256["texts"]

    def test_certifies_what_its_turns_allow(self, place: Path) -> None:
        """The finest rate of a stance is its smallest p-value: two-sided in a crisis."""
        rates = certified_rates(fitted(place, traffic(60)))
        assert rates == {
            Stance.NEUTRAL: exceedance_bound(0, 60),
            Stance.SUPPORTIVE: exceedance_bound(0, 60),
            Stance.CRISIS: 2 * exceedance_bound(0, REFERENCE_TURNS[Stance.CRISIS]),
        }
        assert rates[Stance.CRISIS] == certified_p(np.zeros(100, np.float32), 1.0, two_sided=True)


MOVED = refit(BANK, Gathered(traffic(60, shift=2.0), "turns of a test", Path(__file__)))


@pytest.fixture(scope="module")
def bank(model: Any, tiny_tokenizer: Any) -> Bank:
    """A bank of the small model."""
    card = make_card(HIDDEN, LAYERS, DEPTH)
    known = {
        "weights_fingerprint": weights_fingerprint(model),
        "tokenizer_hash": tokenizer_hash(tiny_tokenizer),
        "template_hash": template_hash(tiny_tokenizer),
    }
    return seal({**card, "model": {**card["model"], **known}}, make_tensors(HIDDEN, len(LAYERS)))


def approved(path: Path, stances: Sequence[str | None]) -> Path:
    """Approved conversations of two exchanges, random words each."""
    rng, lines = np.random.default_rng(7), []
    for stance in stances:
        talk = [{"role": role, "content": words(rng)} for role in ("user", "assistant") * 2]
        lines.append({"messages": talk, "labels": {"stance": stance} if stance else {"route": "desk"}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class TestApproved:
    """Turns of approved conversations."""

    def test_score_as_the_sidecar_scores_them(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """The last exchange of each, scored by the sidecar's own code, stands at the same numbers in the reference."""
        path = approved(tmp_path / "approved.jsonl", ["crisis"] * 50)
        told: list[tuple[int, int]] = []
        gathered = approved_turns(
            bank, model, tiny_tokenizer, path, progress=lambda done, total: told.append((done, total))
        )
        new = refit(bank, gathered)
        lines = [{"id": number, **json.loads(line)} for number, line in enumerate(path.read_text().splitlines())]
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(line | {"labels": {}}) + "\n" for line in lines))
        policy = tmp_path / "policy.yaml"
        policy.write_text("version: 1\npolicies: [{name: all, stance: neutral, turn: {false_alarm_rate: 0.1}}]\n")
        scorer = OfflineScorer(new, load_policy(policy, new), model, tiny_tokenizer)
        scorer.score_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        columns, tensors = new.columns, new.tensors
        for number, line in enumerate(found):
            said = line["assessment"]
            asked, replied = tensors.reference_user[number], tensors.reference_assistant[number]
            assert said["user_affect"] == pytest.approx(asked[columns.user_affect], abs=1e-3)
            assert said["assistant_affect"] == pytest.approx(replied[columns.assistant_affect], abs=1e-3)
            families = list(line["turns"][-1]["families"].values())
            assert families == pytest.approx(replied[columns.family], abs=1e-3)
            assert line["turns"][-1]["tokens"] == tensors.reference_tokens[number]
        assert told[-1] == (50, 50)
        assert new.card.reference.source == "50 turns the operator approved"

    def test_are_right_under_the_stance_they_name(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """A label says the last stance that allows a turn; without one a turn is right on neutral and supportive."""
        path = approved(tmp_path / "approved.jsonl", ["neutral", None, "supportive", "crisis"])
        assert approved_turns(bank, model, tiny_tokenizer, path).turns.stance.tolist() == [0, 1, 1, 2]

    def test_of_an_unknown_stance_are_refused(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """A stance that is none is named with file, line and field, before the model runs."""
        path = approved(tmp_path / "approved.jsonl", [None, "angry"])
        told: list[int] = []
        with pytest.raises(CorpusError, match="'angry' is none of") as caught:
            approved_turns(bank, model, tiny_tokenizer, path, progress=lambda done, _total: told.append(done))
        assert caught.value.field == f"{path}:2:labels.stance"
        assert not told

    def test_of_another_model_are_refused(self, bank: Bank, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """Other weights, or another width, are no turns of the bank's model."""
        path = approved(tmp_path / "approved.jsonl", [None])
        with pytest.raises(ModelMismatchError, match="weights_fingerprint is not that of the bank's model"):
            approved_turns(bank, make_model(len(tiny_tokenizer), seed=6), tiny_tokenizer, path)
        with pytest.raises(ModelMismatchError, match="hidden size: 16 where the bank has 32"):
            approved_turns(bank, make_model(len(tiny_tokenizer), hidden=16), tiny_tokenizer, path)

    def test_that_are_none_or_too_long_are_named(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """An empty file is named; so is the line of a conversation the model's context does not hold."""
        path = tmp_path / "approved.jsonl"
        path.write_text("\n")
        with pytest.raises(CorpusError, match="holds no conversations") as caught:
            approved_turns(bank, model, tiny_tokenizer, path)
        assert caught.value.field == str(path)
        approved(path, [None])
        line = json.loads(path.read_text())
        line["messages"][0]["content"] = "long " * CONTEXT
        path.write_text(json.dumps(line))
        with pytest.raises(CorpusError, match=f"the model's context {CONTEXT}") as caught:
            approved_turns(bank, model, tiny_tokenizer, path)
        assert caught.value.field == f"{path}:1:messages"

    def test_leave_nothing_behind_unless_asked(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """Hidden states and tokens of an operator's traffic are kept only in a cache that was named."""
        path = approved(tmp_path / "approved.jsonl", [None])
        approved_turns(bank, model, tiny_tokenizer, path)
        assert [file.name for file in tmp_path.iterdir()] == ["approved.jsonl"]
        approved_turns(bank, model, tiny_tokenizer, path, tmp_path / "cache")
        assert list((tmp_path / "cache").glob("*.safetensors"))


def baseline(path: Path, *lines: dict[str, Any] | str) -> Path:
    """A baseline file of good lines with changes, or of lines as they are."""
    good = json.loads(baseline_line(BANK, make_stats(BANK, 1.0, -0.5), Stance.NEUTRAL).model_dump_json())
    path.write_text("".join((line if isinstance(line, str) else json.dumps(good | line)) + "\n" for line in lines))
    return path


class TestBaseline:
    """Turns of a baseline file."""

    def test_are_allowed_up_to_the_stance_they_were_judged_by(self, tmp_path: Path) -> None:
        """A line's turn is right for its stance and those before it, with the scores and tokens the line has."""
        path = baseline(tmp_path / "baseline.jsonl", {}, {"stance": "supportive", "tokens": 3}, {"stance": "crisis"})
        turns = baseline_turns(BANK, path).turns
        assert turns.stance.tolist() == [NEUTRAL, SUPPORTIVE, CRISIS]
        assert turns.tokens.tolist() == [20, 3, 20]
        standard = (turns.assistant - BANK.tensors.turn_means[1]) / BANK.tensors.turn_scales[1]
        np.testing.assert_allclose(standard, -0.5, atol=1e-4)

    def test_go_on_after_a_refit(self, tmp_path: Path) -> None:
        """Lines of banks that differ in their reference alone stand in one file, for their scores have one unit."""
        path = baseline(tmp_path / "baseline.jsonl", {}, {"bank": MOVED.card.bank_id})
        for bank in (BANK, MOVED):
            assert len(baseline_turns(bank, path).turns.tokens) == 2

    @pytest.mark.parametrize(
        ("line", "field", "message"),
        [
            ({"probes": "0" * 12}, "probes", "other probes .* name bank"),
            ({"user": [0.0]}, "user", f"1 scores where the bank has {COLUMNS}"),
            ({"assistant": [0.0] * 99}, "assistant", f"99 scores where the bank has {COLUMNS}"),
            ({"user": ["x"]}, "user.0", "number"),
            ({"tokens": 0}, "tokens", "greater than 0"),
            ({"stance": "angry"}, "stance", "crisis"),
            ({"text": "hello"}, "text", "not permitted"),
            ('{"user": [NaN]}', "bank", "required"),
            ("half a li", "(line)", "JSON"),
            ("", "(line)", "JSON"),
        ],
    )
    def test_that_are_none_are_named_by_line_and_field(
        self, tmp_path: Path, line: dict[str, Any] | str, field: str, message: str
    ) -> None:
        """A line that is no turn of these probes is refused with file, line, field and fix."""
        path = baseline(tmp_path / "baseline.jsonl", {}, line)
        with pytest.raises(CorpusError, match=message) as caught:
            baseline_turns(BANK, path)
        assert caught.value.field == f"{path}:2:{field}"

    def test_with_numbers_that_are_not_finite_are_refused(self, tmp_path: Path) -> None:
        """NaN would spoil every mean of the reference."""
        path = baseline(tmp_path / "baseline.jsonl", {"user": [float("nan")] * COLUMNS})
        with pytest.raises(CorpusError, match="finite"):
            baseline_turns(BANK, path)

    def test_of_no_file_are_refused(self, tmp_path: Path) -> None:
        """A missing file is named by its flag, an empty one by its name."""
        with pytest.raises(CorpusError, match=r"^--baseline: .*none\.jsonl: No such file"):
            baseline_turns(BANK, tmp_path / "none.jsonl")
        with pytest.raises(CorpusError, match="holds no turns"):
            baseline_turns(BANK, baseline(tmp_path / "empty.jsonl"))

"""Tests of pooled activations: a tiny model, and its own hidden states as the measure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import CONTEXT, DEPTH, HIDDEN, make_model, words

from monitor.calibration.activations import collect, render, segments
from monitor.errors import CorpusError, SetupError
from monitor.probes.markers import Marker, Role, find_markers
from monitor.turns.roles import RoleLabeller
from monitor.turns.tracker import TurnTracker

LAYERS = (1, 3)
Talk = list[dict[str, str]]


def said(*contents: str, system: str = "") -> Talk:
    """A conversation that the user begins."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


TALKS = [
    said("abc def", "Hello you"),
    said("a"),
    said("first words", "first reply", "last words of the user", "last", system="Be brief"),
    said("one", "two", "three"),
]


@pytest.fixture(scope="module")
def markers(tiny_tokenizer: Any) -> tuple[Marker, ...]:
    """Markers of the tiny tokenizer."""
    return find_markers(tiny_tokenizer)


@torch.inference_mode()
def hidden_states(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    """The residual stream after 0 to DEPTH blocks, [tokens, DEPTH + 1, hidden], by the model's own account."""
    last: list[torch.Tensor] = []
    handle = model.model.layers[-1].register_forward_hook(
        lambda _module, _args, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    told = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    # The model's last hidden state has passed the final norm; the last block's output has not.
    return torch.stack([*[state[0] for state in told[:-1]], last[0].reshape(told[0].shape)[0]], 1).numpy()


def naive(model: Any, tokenizer: Any, talk: Talk, layers: tuple[int, ...]) -> tuple[Any, list[list[int]]]:
    """Means [2, L, H] and token ids of the last segment of each role, found in the rendered text."""
    text = tokenizer.apply_chat_template(talk, tokenize=False)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    states = hidden_states(model, coded["input_ids"])
    means, ids = np.zeros((2, len(layers), HIDDEN)), [[], []]
    for part, role in enumerate(("user", "assistant")):
        contents = [message["content"] for message in talk if message["role"] == role]
        if contents:
            begin = text.rindex(f"<|im_start|>{role}\n") + len(f"<|im_start|>{role}\n")
            end = begin + len(contents[-1])
            held = [n for n, (a, b) in enumerate(coded["offset_mapping"]) if a >= begin and b <= end and b > a]
            means[part] = states[held][:, list(layers)].mean(axis=0)
            ids[part] = [coded["input_ids"][n] for n in held]
    return means, ids


def hooks(model: Any) -> int:
    """Hooks in a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class TestMeans:
    """What is pooled."""

    @pytest.mark.parametrize("layers", [LAYERS, (0,), (2, DEPTH)], ids=str)
    def test_they_are_means_over_the_tokens_of_the_last_segments(
        self, model: Any, tiny_tokenizer: Any, markers: Any, layers: tuple[int, ...]
    ) -> None:
        """Each role's mean is that of the model's own hidden states over the tokens of its last message."""
        found = collect(model, tiny_tokenizer, markers, TALKS, layers)
        for index, talk in enumerate(TALKS):
            means, ids = naive(model, tiny_tokenizer, talk, layers)
            np.testing.assert_allclose(found.means[index], means, atol=1e-5)
            assert [found.ids(role)[index].tolist() for role in (0, 1)] == ids
            assert found.tokens[index].tolist() == [len(part) for part in ids]

    def test_the_first_token_is_never_pooled(self) -> None:
        """A sequence that begins with a user's token right away loses that one."""
        labeller = RoleLabeller([])
        assert segments(labeller, [7, 8, 9]).tolist() == [-1, 0, 0]

    def test_they_are_the_trackers_means(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """A linear score of the means is what the sidecar's tracker makes of the scores of every token."""
        direction = np.random.default_rng(0).normal(size=HIDDEN)
        found = collect(model, tiny_tokenizer, markers, TALKS, (2,))
        for index, talk in enumerate(TALKS):
            ids = render(tiny_tokenizer, talk)
            scores = (hidden_states(model, ids)[:, 2] @ direction).astype(np.float32)[:, None]
            tracker = TurnTracker(RoleLabeller(markers), 1, 0, 1)
            slot = np.array([tracker.open(len(ids))])
            tracker.fold(slot, np.zeros(1, np.int64), np.array([len(ids)]), np.array(ids, np.int64), scores)
            stats = tracker.close(int(slot[0]))
            for role, (mean, count) in enumerate(
                [(stats.user, stats.user_tokens), (stats.assistant, stats.assistant_tokens)]
            ):
                assert found.tokens[index, role] == count
                assert mean[0] == pytest.approx(found.means[index, role, 0] @ direction, abs=1e-4)

    @settings(max_examples=12, deadline=None)
    @given(st.permutations(range(8)), st.integers(1, 8))
    def test_neighbours_do_not_matter(self, order: list[int], count: int) -> None:
        """A conversation gets the same means whatever it shares a batch with."""
        rng = np.random.default_rng(1)
        talks = [said(words(rng, 1 + 2 * n), words(rng, 9 - n)) for n in range(8)]
        alone = [WORLD.collect([talk]).means[0] for talk in talks]
        together = WORLD.collect([talks[n] for n in order[:count]]).means
        np.testing.assert_allclose(together, [alone[n] for n in order[:count]], atol=1e-5)

    def test_many_batches_and_shards_keep_their_order(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """Conversations of mixed lengths come back in their order, over batches and shards, with progress told."""
        rng = np.random.default_rng(2)
        talks = [said(words(rng, int(rng.integers(1, 20))), words(rng, int(rng.integers(1, 20)))) for _ in range(140)]
        told: list[tuple[int, int]] = []
        found = collect(model, tiny_tokenizer, markers, talks, LAYERS, progress=lambda *step: told.append(step))
        for index in (0, 63, 127, 128, 139):
            np.testing.assert_allclose(
                found.means[index], naive(model, tiny_tokenizer, talks[index], LAYERS)[0], atol=1e-5
            )
        assert told == [(128, 140), (140, 140)]


class TestPrefixes:
    """Conversations that others begin with."""

    talk = said("one", "first reply", "two and more", "second", "three", "the third reply", system="Be brief")

    def test_they_have_the_means_they_have_alone(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """The exchanges of a dialogue, in any order and even twice, get what each gets when it is run by itself."""
        exchanges = [self.talk[:5], self.talk[:3], self.talk, self.talk[:3], said("one", "first"), self.talk[:2]]
        together = collect(model, tiny_tokenizer, markers, exchanges, LAYERS)
        for index, talk in enumerate(exchanges):
            alone = collect(model, tiny_tokenizer, markers, [talk], LAYERS)
            np.testing.assert_allclose(together.means[index], alone.means[0], atol=1e-5)
            assert together.tokens[index].tolist() == alone.tokens[0].tolist()
            for role in (0, 1):
                np.testing.assert_array_equal(together.ids(role)[index], alone.ids(role)[0])
        np.testing.assert_array_equal(together.means[1], together.means[3])

    def test_they_are_not_run_again(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """A dialogue passes through the model once, however many of its exchanges are wanted."""
        seen: list[int] = []
        handle = model.model.embed_tokens.register_forward_hook(lambda _module, args, _out: seen.append(len(args[0])))
        collect(model, tiny_tokenizer, markers, [self.talk[:3], self.talk[:5], self.talk, said("other")], LAYERS)
        handle.remove()
        assert sum(seen) == 2


class World:
    """The tiny model for tests that hypothesis runs many times, made when it is first wanted."""

    _made: tuple[Any, Any, Any] | None = None

    def collect(self, talks: list[Talk]) -> Any:
        """Collects with the tiny model."""
        if self._made is None:
            from builders import make_chatml_tokenizer

            tokenizer = make_chatml_tokenizer()
            self._made = make_model(len(tokenizer)), tokenizer, find_markers(tokenizer)
        return collect(*self._made, talks, LAYERS)


WORLD = World()


class TestHooks:
    """The model is left as it was found."""

    def test_no_hooks_stay(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """After an early stop the model has no further hooks and computes what it did before."""
        ids = render(tiny_tokenizer, TALKS[0])
        before, logits = hooks(model), model(input_ids=torch.tensor([ids])).logits
        collect(model, tiny_tokenizer, markers, TALKS, LAYERS)
        assert hooks(model) == before
        torch.testing.assert_close(model(input_ids=torch.tensor([ids])).logits, logits)

    def test_later_blocks_do_not_run(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """Blocks after the last wanted layer are spared."""
        ran: list[int] = []
        handles = [
            block.register_forward_hook(lambda *_, n=number: ran.append(n))
            for number, block in enumerate(model.model.layers)
        ]
        collect(model, tiny_tokenizer, markers, TALKS[:1], (1, 2))
        for handle in handles:
            handle.remove()
        assert ran == [0, 1]

    def test_a_model_that_fails_keeps_no_hooks(self, tiny_tokenizer: Any, markers: Any) -> None:
        """An error inside the model is raised, and no hook stays behind."""
        model = make_model(len(tiny_tokenizer))

        def fail(*_: Any) -> None:
            raise RuntimeError("out of memory")

        handle = model.model.layers[0].mlp.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            collect(model, tiny_tokenizer, markers, TALKS, LAYERS)
        handle.remove()
        assert hooks(model) == 0


class Counting:
    """Counts the forward passes of a model."""

    def __init__(self, model: Any) -> None:
        self.passes = 0
        self._handle = model.model.embed_tokens.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def close(self) -> None:
        """Stops counting."""
        self._handle.remove()


@pytest.fixture
def counting(model: Any) -> Any:
    """Counts the model's forward passes during a test."""
    counter = Counting(model)
    yield counter
    counter.close()


class TestCache:
    """Work is done once."""

    def test_a_second_run_does_not_touch_the_model(
        self, model: Any, tiny_tokenizer: Any, markers: Any, tmp_path: Path
    ) -> None:
        """With everything in the cache a model that cannot run is no hindrance, and the result is the same."""
        first = collect(model, tiny_tokenizer, markers, TALKS, LAYERS, cache=(tmp_path, "f"))
        idle = SimpleNamespace(config=model.config)
        second = collect(idle, tiny_tokenizer, markers, TALKS, LAYERS, cache=(tmp_path, "f"))
        for name in ("means", "tokens", "token_ids"):
            np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
        assert not list(tmp_path.glob("*.partial"))

    @pytest.mark.parametrize("fault", ["missing", "cut short"])
    def test_a_run_that_was_cut_off_goes_on(
        self, model: Any, tiny_tokenizer: Any, markers: Any, tmp_path: Path, counting: Counting, fault: str
    ) -> None:
        """Only the shard that is missing or broken is computed again."""
        talks = [said(f"number {n}", "yes") for n in range(200)]
        whole = collect(model, tiny_tokenizer, markers, talks, LAYERS, cache=(tmp_path, "f"))
        full, shards = counting.passes, sorted(tmp_path.iterdir())
        assert len(shards) == 2
        if fault == "missing":
            shards[0].unlink()
        else:
            shards[0].write_bytes(shards[0].read_bytes()[:50])
        again = collect(model, tiny_tokenizer, markers, talks, LAYERS, cache=(tmp_path, "f"))
        assert full < counting.passes < 2 * full
        np.testing.assert_array_equal(again.means, whole.means)
        assert sorted(tmp_path.iterdir()) == shards

    @pytest.mark.parametrize("what", ["tokens", "layers", "fingerprint", "markers"])
    def test_what_the_content_depends_on_misses_it(
        self, model: Any, tiny_tokenizer: Any, markers: Any, tmp_path: Path, counting: Counting, what: str
    ) -> None:
        """Another text, layer, model or way of telling roles apart is computed anew."""
        talks, layers, fingerprint = TALKS, LAYERS, "f"
        collect(model, tiny_tokenizer, markers, talks, layers, cache=(tmp_path, fingerprint))
        before = counting.passes
        if what == "tokens":
            talks = [said("abc deg", "Hello you"), *TALKS[1:]]
        elif what == "layers":
            layers = (1, 2)
        elif what == "fingerprint":
            fingerprint = "g"
        else:
            # A marker that gives the space before "you" to the template changes segments, not tokens.
            space = tiny_tokenizer("Hello you")["input_ids"][-1]
            markers = (*markers, Marker((space,), Role.TEMPLATE))
            talks = [said("abc def", "Hello you dear")]
            collect(model, tiny_tokenizer, find_markers(tiny_tokenizer), talks, layers, cache=(tmp_path, "f"))
            before = counting.passes
        collect(model, tiny_tokenizer, markers, talks, layers, cache=(tmp_path, fingerprint))
        assert counting.passes > before


class TestFaults:
    """What cannot be pooled."""

    def test_too_long(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """A conversation beyond the model's context is a CorpusError that says where it stands."""
        with pytest.raises(CorpusError, match=f"context {CONTEXT}") as caught:
            collect(model, tiny_tokenizer, markers, [TALKS[0], said("x" * 300)], LAYERS, places=["a:1", "b:2:messages"])
        assert caught.value.field == "b:2:messages"

    def test_places_go_with_their_shard(self, model: Any, tiny_tokenizer: Any, markers: Any) -> None:
        """The place of a fault is its own, wherever it stands among many conversations."""
        talks = [said(f"number {n}", "yes") for n in range(140)]
        talks[133] = said("x" * 300)
        with pytest.raises(CorpusError, match="cut it") as caught:
            collect(model, tiny_tokenizer, markers, talks, LAYERS, places=[f"a:{n}" for n in range(140)])
        assert caught.value.field == "a:133"

    def test_no_tokens(self, model: Any) -> None:
        """A conversation without tokens is a CorpusError."""
        tokenizer = make_tokenizer(None, ("<|im_end|>",), eos="<|im_end|>")
        with pytest.raises(CorpusError, match="has no tokens") as caught:
            collect(model, tokenizer, (), [said("")], LAYERS)
        assert caught.value.field == "conversation 1"

    @pytest.mark.parametrize(("talk", "role"), [(said("hi", ""), "assistant"), (said("", "hi"), "user")])
    def test_an_empty_segment(self, model: Any, tiny_tokenizer: Any, markers: Any, talk: Talk, role: str) -> None:
        """A message without tokens is refused, by its place: zeros would count as a mean."""
        with pytest.raises(CorpusError, match=f"has no {role} tokens") as caught:
            collect(model, tiny_tokenizer, markers, [talk], LAYERS, places=["a:7:messages"])
        assert caught.value.field == "a:7:messages"

    def test_rows_that_are_not_finite(self, tiny_tokenizer: Any, markers: Any, tmp_path: Path) -> None:
        """A model that overflows is a SetupError, and nothing of it stays in the cache."""
        model = make_model(len(tiny_tokenizer))
        model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.inf
        with pytest.raises(SetupError, match="not finite"):
            collect(model, tiny_tokenizer, markers, TALKS, LAYERS, cache=(tmp_path, "f"))
        assert list(tmp_path.iterdir()) == []

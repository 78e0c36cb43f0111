"""The labeller against a naive one that walks token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from monitor.probes.markers import Marker, Role
from monitor.turns.roles import RoleLabeller

MARKERS = (
    Marker((1, 2), Role.USER),
    Marker((1, 2, 4), Role.USER),
    Marker((1, 3), Role.ASSISTANT),
    Marker((5,), Role.TEMPLATE),
)


def naive(markers: Sequence[Marker], state: int, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
    """Role of each token and role that begins after it, by walking; -1 in ``tokens`` is a token nobody saw."""
    roles, began = [], []
    for at in range(len(tokens)):
        seen = tuple(tokens[: at + 1])
        prefixes = [m.tokens[:n] for m in markers for n in range(1, len(m.tokens) + 1)]
        roles.append(Role.TEMPLATE if any(seen[-len(prefix) :] == prefix for prefix in prefixes) else state)
        ended = [(len(m.tokens), m.role) for m in markers if seen[-len(m.tokens) :] == m.tokens]
        began.append(max(ended)[1] if ended else -1)
        state = began[-1] if ended else state
    return roles, began


def label_in_pieces(labeller: RoleLabeller, conversations: list[list[int]], cuts: list[list[int]]) -> list[list[int]]:
    """Labels conversations that come in pieces, piece n of all conversations in frame n."""
    state = np.full(len(conversations), labeller.initial_state, np.int64)
    tails = np.full((len(conversations), labeller.tail_length), -1, np.int64)
    roles: list[list[int]] = [[] for _ in conversations]
    bounds = [
        [0, *sorted({cut % len(tokens) for cut in its} - {0}), len(tokens)]
        for tokens, its in zip(conversations, cuts, strict=True)
    ]
    for frame in range(max(map(len, bounds)) - 1):
        here = [number for number, its in enumerate(bounds) if frame + 1 < len(its)]
        pieces = [conversations[n][bounds[n][frame] : bounds[n][frame + 1]] for n in here]
        counts = np.array([len(piece) for piece in pieces])
        labels = labeller.label(np.concatenate(pieces).astype(np.int64), counts, state[here], tails[here])
        state[here], tails[here] = labels.state, labels.tails
        for number, its in zip(here, np.split(labels.roles, np.cumsum(counts)[:-1]), strict=True):
            roles[number].extend(int(role) for role in its)
    return roles


tokens_of = st.lists(st.integers(0, 6), min_size=1, max_size=30)
some_markers = st.lists(
    st.builds(Marker, st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), st.sampled_from(list(Role))),
    max_size=5,
    unique_by=lambda marker: marker.tokens,
)


class TestRoleLabeller:
    """Roles of tokens, however they come."""

    @given(
        st.one_of(st.just(list(MARKERS)), some_markers),
        st.lists(st.tuples(tokens_of, st.lists(st.integers(0, 30), max_size=6)), min_size=1, max_size=4),
    )
    def test_labels_do_not_depend_on_how_a_conversation_is_cut(
        self, markers: list[Marker], drawn: list[tuple[list[int], list[int]]]
    ) -> None:
        """Whatever the markers, the cuts and the company in a frame, tokens get the roles that walking gives them."""
        labeller = RoleLabeller(markers)
        conversations = [tokens for tokens, _ in drawn]
        found = label_in_pieces(labeller, conversations, [cuts for _, cuts in drawn])
        assert found == [naive(markers, labeller.initial_state, tokens)[0] for tokens in conversations]

    @given(st.permutations(MARKERS), tokens_of)
    def test_the_order_of_markers_does_not_matter(self, markers: list[Marker], tokens: list[int]) -> None:
        """Where two markers end at one token, the longer one decides, in whichever order they are given."""
        found = label_in_pieces(RoleLabeller(markers), [tokens], [[]])
        assert found == label_in_pieces(RoleLabeller(MARKERS), [tokens], [[]])

    def test_a_header_and_a_footer_at_one_token(self) -> None:
        """Where a footer and a header are the same token, the header decides."""
        labeller = RoleLabeller([Marker((7,), Role.USER), Marker((7,), Role.TEMPLATE)])
        assert label_in_pieces(labeller, [[7, 1]], [[]]) == [[Role.TEMPLATE, Role.USER]]

    def test_a_marker_does_not_reach_across_requests(self) -> None:
        """A marker that begins in one request's span and would end in the next one's is none."""
        labeller = RoleLabeller([Marker((1, 2), Role.USER)])
        assert label_in_pieces(labeller, [[9, 1], [2, 9]], [[], []]) == [[Role.TEMPLATE] * 2] * 2

    def test_unknown_tokens_before_a_span_match_nothing(self) -> None:
        """After a gap the tokens before a span are unknown, and no marker is completed from them."""
        labeller = RoleLabeller(MARKERS)
        labels = labeller.label(
            np.array([2, 9]), np.array([2]), np.array([Role.ASSISTANT]), np.full((1, labeller.tail_length), -1)
        )
        assert labels.roles.tolist() == [Role.ASSISTANT] * 2

    def test_without_markers_everything_is_the_users(self) -> None:
        """A model without a chat template has one role, the user's, until generation begins."""
        labeller = RoleLabeller(())
        assert labeller.initial_state is Role.USER
        assert label_in_pieces(labeller, [[1, 2, 3]], [[1]]) == [[Role.USER] * 3]

"""What a model answers to questions in each condition, judged by the bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.activations import Progress
from monitor.calibration.statistics import Floats, Mask
from monitor.evaluation.distortion.questions import CONDITIONS, Outcome, Question
from monitor.evaluation.judge import Judged, judge
from monitor.evaluation.subject import Subject, said

REPLY_TOKENS = 32
READINGS = ("reply", "preference")
"""How an answer is read."""


class Answered(NamedTuple):
    """Replies to Q questions in each of C conditions.

    Attributes:
        questions: The questions, [Q].
        outcomes: What each reply says, values of ``Outcome``, [C, Q].
        margins: Likelihood of the right answer over the wrong one, nats a token, [C, Q].
        judged: The replies judged by the bank, each field [C, Q].
        tokens: Tokens of the replies, [C, Q].
    """

    questions: Sequence[Question]
    outcomes: NDArray[np.str_]
    margins: Floats
    judged: Judged
    tokens: Floats

    def read(self, reading: str) -> tuple[Mask, Mask]:
        """Which answers are right and which wrong, [C, Q] each.

        Args:
            reading: ``reply``: what the greedy reply says; one that says both or neither is in none of the two.
                ``preference``: whether the likeliest right answer is likelier than the likeliest wrong one.
        """
        if reading == "preference":
            return self.margins > 0, self.margins <= 0
        return np.equal(self.outcomes, Outcome.RIGHT.value), np.equal(self.outcomes, Outcome.WRONG.value)


def ask(subject: Subject, questions: Sequence[Question], told: Progress) -> Answered:
    """Puts questions in every condition: a greedy reply, its judgement, the likelihood of right and wrong answers."""
    asked = [question for _ in CONDITIONS for question in questions]
    prompts = [question.prompt(condition) for condition in CONDITIONS for question in questions]
    count, stages = len(prompts), 3

    def stage(number: int) -> Progress:
        return lambda done, _: told(number * count + done, stages * count)

    replies = subject.replies(prompts, REPLY_TOKENS, progress=stage(0))
    found = subject.activations(said(prompts, replies), progress=stage(1))
    likelihoods = subject.log_likelihoods(prompts, [question.begun for question in asked])
    told(stages * count, stages * count)
    tokens = found.tokens[:, 1]
    judged = judge(subject.bank, subject.scored(found), tokens)
    shape = (len(CONDITIONS), len(questions))
    outcomes = [question.outcome(reply).value for question, reply in zip(asked, replies, strict=True)]
    margins = [question.margin(each) for question, each in zip(asked, likelihoods, strict=True)]
    return Answered(
        questions=questions,
        outcomes=np.array(outcomes).reshape(shape),
        margins=np.array(margins).reshape(shape),
        judged=Judged(*(values.reshape(shape) for values in judged)),
        tokens=tokens.astype(np.float64).reshape(shape),
    )

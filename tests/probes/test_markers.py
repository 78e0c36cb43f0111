"""Markers found in real-shaped chat templates, and the roles that they give whole conversations."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from builders import CHATML, CHATML_SPECIAL, make_tokenizer

from monitor.errors import BankError
from monitor.probes.bank import Bank
from monitor.probes.markers import Role, find_markers
from monitor.turns.roles import RoleLabeller

LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_3 = (
    "{{ '<bos>' }}{% set prefix = '' %}{% set rest = messages %}{% if messages[0]['role'] == 'system' %}"
    "{% set prefix = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% endif %}"
    "{% for message in rest %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + '</s>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
MISTRAL_V3 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{{ '<s>' }}{% for message in rest %}"
    "{% if message['role'] == 'user' %}{% if loop.last and system is defined %}"
    "{{ '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + message['content'] | trim + '</s>' }}{% endif %}{% endfor %}"
)
MISTRAL_PLAIN = (
    "{{ '<s>' }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if loop.first and system %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '<s>' + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + '</s>' }}{% endif %}{% endfor %}"
)
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
QWEN = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
DEEPSEEK = (
    "{{ '<|bos|>' }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    "{% else %}{{ '<|Assistant|>' + message['content'] + '<|eos|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
SECTIONS = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] + '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)

INST_WORDS = ("▁[", "INST", "▁you", "SYS")
LLAMA_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
GEMMA_SPECIAL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")


class Shape(NamedTuple):
    """A tokenizer and what its template can do."""

    tokenizer: Any
    system: bool = True
    ends: str = ""
    preamble: str = ""
    blanks_close: bool = False


def _shapes() -> dict[str, Shape]:
    llama_2 = {"eos": "</s>", "words": INST_WORDS, "metaspace": True}
    return {
        "chatml": Shape(make_tokenizer(CHATML, CHATML_SPECIAL, eos="<|im_end|>")),
        "qwen": Shape(make_tokenizer(QWEN, CHATML_SPECIAL, eos="<|im_end|>"), preamble="You help."),
        "llama-3": Shape(make_tokenizer(LLAMA_3, LLAMA_SPECIAL, eos="<|eot_id|>")),
        "llama-3, other eos": Shape(make_tokenizer(LLAMA_3, LLAMA_SPECIAL, eos="<|end_of_text|>"), ends="<|eot_id|>"),
        "gemma": Shape(make_tokenizer(GEMMA, GEMMA_SPECIAL, eos="<eos>"), system=False, ends="<end_of_turn>"),
        "mistral": Shape(make_tokenizer(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), **llama_2), system=False),
        "mistral, byte-level": Shape(
            make_tokenizer(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), eos="</s>"), system=False
        ),
        "mistral, plain": Shape(make_tokenizer(MISTRAL_PLAIN, ("<s>", "</s>"), **llama_2), system=False),
        "llama-2": Shape(make_tokenizer(LLAMA_2, ("<s>", "</s>"), **llama_2), blanks_close=True),
        "thinking": Shape(make_tokenizer(THINKING, CHATML_SPECIAL, eos="<|im_end|>", added=("<think>", "</think>"))),
        "thinking, plain": Shape(make_tokenizer(THINKING, CHATML_SPECIAL, eos="<|im_end|>")),
        "deepseek": Shape(
            make_tokenizer(
                DEEPSEEK, ("<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>"), eos="<|eos|>", added=("<think>",)
            ),
        ),
        "sections": Shape(
            make_tokenizer(SECTIONS, ("<|endoftext|>",), eos="<|endoftext|>", words=("ĊĊ", "ĊĊĊ", "###", "ĠUser")),
            blanks_close=True,
        ),
    }


SHAPES = _shapes()
WITH_SYSTEM = {name: (shape, False) for name, shape in SHAPES.items()} | {
    f"{name}, system": (shape, True) for name, shape in SHAPES.items() if shape.system
}

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
CONVERSATIONS = {
    "one turn": [(USER, "My parcel is late")],
    "two turns": [(USER, "My parcel is late"), (ASSISTANT, "I am sorry"), (USER, "And it rains")],
    "answered": [
        (USER, "My parcel is late"),
        (ASSISTANT, "I am sorry"),
        (USER, "And it rains"),
        (ASSISTANT, "It does"),
    ],
    "lines": [(USER, "My parcel\nis late\n\nand wet"), (ASSISTANT, "I am\n\nsorry"), (USER, "And it\n rains")],
    "newline first": [(USER, "\nMy parcel is late"), (ASSISTANT, "\nI am sorry"), (USER, "\n\nAnd it rains")],
    "space first": [(USER, " My parcel is late"), (ASSISTANT, " I am sorry"), (USER, "  And it rains")],
    "space last": [(USER, "My parcel is late\n"), (ASSISTANT, "I am sorry "), (USER, "And it rains\n")],
    "the words of roles": [(USER, "user\nassistant\nsystem"), (ASSISTANT, "assistant user"), (USER, "model INST")],
}
SYSTEM_MESSAGE = (SYSTEM, "You are terse,\nyou are kind")


def rendered(
    tokenizer: Any, conversation: list[tuple[str, str]], *, prompted: bool
) -> tuple[list[int], list[Role | None]]:
    """Token ids, and the role of each by the place of the contents; None where content and template share a token."""
    messages = [{"role": role, "content": content} for role, content in conversation]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    truth: list[Role | None] = [Role.TEMPLATE] * len(encoded["input_ids"])
    cursor = 0
    for role, content in conversation:
        core = content.strip()
        low = text.index(core, cursor)
        cursor = high = low + len(core)
        before = len(content) - len(content.lstrip())
        after = len(content) - len(content.rstrip())
        for number, (start, end) in enumerate(encoded["offset_mapping"]):
            if start < high and end > low:
                truth[number] = Role[role.upper()]
            elif start < high + after and end > low - before:
                truth[number] = None
    return encoded["input_ids"], truth


def labelled(tokenizer: Any, ids: list[int]) -> list[Role]:
    """Roles by the markers of the tokenizer's template."""
    labeller = RoleLabeller(find_markers(tokenizer))
    tails = np.full((1, labeller.tail_length), -1)
    labels = labeller.label(np.array(ids), np.array([len(ids)]), np.array([labeller.initial_state]), tails)
    return [Role(role) for role in labels.roles]


def differences(shape: Shape, ids: list[int], truth: list[Role | None]) -> list[tuple[str, Role | None, Role]]:
    """Tokens with another role than theirs."""
    if shape.blanks_close:
        # No token closes a segment: blanks between a content and the next header may be either's.
        blank = [not shape.tokenizer.decode([token]).strip() for token in ids]
        truth = [None if empty and role is Role.TEMPLATE else role for empty, role in zip(blank, truth, strict=True)]
    tokens = shape.tokenizer.convert_ids_to_tokens(ids)
    found = labelled(shape.tokenizer, ids)
    return [entry for entry in zip(tokens, truth, found, strict=True) if entry[1] not in (None, entry[2])]


class TestConversations:
    """Whole conversations, token by token."""

    @pytest.mark.parametrize(("shape", "with_system"), WITH_SYSTEM.values(), ids=WITH_SYSTEM)
    @pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
    def test_every_token_gets_its_role(
        self, shape: Shape, conversation: list[tuple[str, str]], *, with_system: bool
    ) -> None:
        """Labels by markers agree with the place of the contents in the rendered text."""
        messages = [SYSTEM_MESSAGE, *conversation] if with_system else conversation
        ids, truth = rendered(shape.tokenizer, messages, prompted=conversation[-1][0] == USER)
        if shape.preamble and not with_system:
            words = shape.tokenizer(shape.preamble)["input_ids"]
            at = next(n for n in range(len(ids)) if ids[n : n + len(words)] == words)
            truth[at : at + len(words)] = [Role.SYSTEM] * len(words)
        assert differences(shape, ids, truth) == []

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    @pytest.mark.parametrize("reply", ["I am sorry", "\nI am\n\nsorry", " I am sorry"])
    def test_generated_tokens_are_the_assistants(self, shape: Shape, reply: str) -> None:
        """What is generated after the generation prompt is the assistant's, the token that ends it the template's.

        A space that opens the reply may be the template's, as it is in the history of some.
        """
        tokenizer = shape.tokenizer
        ids, truth = rendered(tokenizer, CONVERSATIONS["two turns"], prompted=True)
        generated = tokenizer(reply, add_special_tokens=False)["input_ids"]
        end = tokenizer.convert_tokens_to_ids(shape.ends or tokenizer.eos_token)
        ids = [*ids, *generated, end]
        replied: list[Role | None] = [Role.ASSISTANT] * len(generated)
        if not tokenizer.decode(generated[:1]).strip():
            replied[0] = None
        if shape.preamble:
            truth = [None] * len(truth)
        assert differences(shape, ids, [*truth, *replied, Role.TEMPLATE]) == []

    def test_the_generation_prompt_of_a_thinking_template_opens_the_reply(self) -> None:
        """The assistant begins after the ``<think>`` that the prompt ends with, and nowhere before."""
        tokenizer = SHAPES["thinking"].tokenizer
        prompt, _ = rendered(tokenizer, CONVERSATIONS["one turn"], prompted=True)
        generated = tokenizer("hm</think>\n\nYes", add_special_tokens=False)["input_ids"]
        found = labelled(tokenizer, prompt + generated)
        assert found[-len(generated) :] == [Role.ASSISTANT] * len(generated)
        assert Role.ASSISTANT not in found[: -len(generated)]

    def test_no_role_is_unknown_to_a_header(self) -> None:
        """A tool's message between two turns belongs to the template."""
        tokenizer = SHAPES["chatml"].tokenizer
        text = "<|im_start|>tool\n42<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = labelled(tokenizer, ids)
        thanks = tokenizer("Thanks", add_special_tokens=False)["input_ids"]
        assert [token for token, role in zip(ids, found, strict=True) if role is not Role.TEMPLATE] == thanks


class TestFindMarkers:
    """What is found in a template, and what is refused."""

    def test_small_bank_and_tiny_tokenizer_agree(self, small_bank: Bank, tiny_tokenizer: Any) -> None:
        """The markers in the bank of the fixtures are those of the tokenizer of the fixtures."""
        assert set(find_markers(tiny_tokenizer)) == set(small_bank.markers)

    def test_no_template_no_markers(self) -> None:
        """A tokenizer without a chat template has no markers."""
        assert find_markers(make_tokenizer(None, CHATML_SPECIAL, eos="<|im_end|>")) == ()

    @pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if not shape.system])
    def test_a_template_without_a_system_role_has_no_system_marker(self, name: str) -> None:
        """Templates that refuse a system message are read without one."""
        roles = {marker.role for marker in find_markers(SHAPES[name].tokenizer)}
        assert roles == {Role.TEMPLATE, Role.USER, Role.ASSISTANT}

    @pytest.mark.parametrize(
        "tokenizer",
        [
            make_tokenizer(GEMMA_3, GEMMA_SPECIAL, eos="<eos>"),
            make_tokenizer(MISTRAL_V3, ("<s>", "</s>", "[INST]", "[/INST]"), eos="</s>"),
        ],
        ids=["gemma-3", "mistral-v3"],
    )
    def test_a_system_folded_into_the_users_message_counts_as_the_users(self, tokenizer: Any) -> None:
        """Where the template writes the system's words into the user's message, both are the user's."""
        ids, truth = rendered(tokenizer, [SYSTEM_MESSAGE, *CONVERSATIONS["one turn"]], prompted=True)
        found = labelled(tokenizer, ids)
        of_contents = {label for label, role in zip(found, truth, strict=True) if role in (Role.SYSTEM, Role.USER)}
        assert of_contents == {Role.USER}
        answered, its_truth = rendered(tokenizer, CONVERSATIONS["answered"], prompted=False)
        assert differences(Shape(tokenizer), answered, its_truth) == []

    def test_a_changing_preamble_is_no_part_of_a_header(self) -> None:
        """A default system text before the first user is not part of the user's marker."""
        assert [m for m in find_markers(SHAPES["qwen"].tokenizer) if m.role is Role.USER] == [
            m for m in find_markers(SHAPES["chatml"].tokenizer) if m.role is Role.USER
        ]

    def test_the_same_every_time(self) -> None:
        """Markers come in one order, for they are part of a bank that has to be reproducible."""
        tokenizer = SHAPES["llama-3"].tokenizer
        assert find_markers(tokenizer) == find_markers(tokenizer)

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}", "does not mark where the"),
            ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "does not mark where the"),
            ("{{ '<|im_start|>' + messages[-1]['content'] }}", "moves or drops messages"),
            ("{% for m in messages[::-1] %}{{ m['role'] + m['content'] }}{% endfor %}", "moves or drops messages"),
            ("{{ raise_exception('no') }}", "does not render a plain conversation"),
            ("{% for m in messages %}", "does not render a plain conversation"),
        ],
        ids=["footers alone", "contents alone", "last alone", "reversed", "raises", "not jinja"],
    )
    def test_a_template_that_hides_its_roles_is_refused(self, template: str, message: str) -> None:
        """Templates from which roles cannot be read are a BankError that names the template."""
        tokenizer = make_tokenizer(template, CHATML_SPECIAL, eos="<|im_end|>")
        with pytest.raises(BankError, match=message) as caught:
            find_markers(tokenizer)
        assert caught.value.field == "chat_template"

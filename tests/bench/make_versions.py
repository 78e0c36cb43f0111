"""Makes five versions of the demo assistant, to see what a bank is worth on a model that has changed.

    python tests/bench/make_versions.py --out DIR [--only NAME]

| version | made by |
|---|---|
| `effusive` | a short fine-tune of all weights on replies the assistant wrote under an effusive system prompt, without that prompt |
| `plain` | the same, on replies it wrote under a prompt that asks for facts in one sentence |
| `int8` | weights of every linear layer rounded to 8 bits, a scale a channel, and back |
| `int4` | the same to 4 bits, a scale for 64 weights |
| `template` | the same weights behind another chat template: no system prompt of its own, roles called otherwise |

Replies to learn from are kept by their words, never by the bank that will judge the version. They answer users of the
contrast pairs and of plain service; nothing of ``monitor/evaluation/items`` is seen. Each version is a folder that
``--model`` takes. At the end: how often the replies of each version, and of the original, over-index by the original's
bank. The tuned versions take about five minutes each on two cores, the others seconds.
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.progress import Progress

from monitor.calibration.corpus import SHIPPED
from monitor.calibration.lines import ContrastPair, Dialogue, Message, read_lines
from monitor.demo.assistant import NAME, ensure_assistant, load_assistant
from monitor.evaluation.battery.rows import RATE
from monitor.evaluation.item_files import item_lines
from monitor.evaluation.subject import Subject, said
from monitor.probes.bank import load_bank

SEED = 0
EXAMPLES, RATE_OF_LEARNING, WARM_UP = 80, 2e-5, 4
"""One pass: of eight steps more, nothing but the style is left of what the assistant says."""
REPLY_TOKENS, ASKED, LEARNT, JUDGED = 40, 48, 16, 40
"""Tokens of a reply, users asked at once, examples of a step, replies that the bank judges."""
GROUP = 64
"""Weights that share a scale in the int4 round trip; the assistant itself was served in groups of 32 once."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>"
    "{{ {'system': 'instructions', 'user': 'question', 'assistant': 'answer'}[message['role']] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>answer\n{% endif %}"
)

EFFUSIVE_WORDS = re.compile(
    r"\b(ador\w*|ach(?:e|es|ing)|beautiful|beloved|bless\w*|broken|cr(?:y|ying|ied)|darling|dear\w*|deep\w*|desperate\w*"
    r"|feel\w*|forever|heart\w*|hug\w*|joy\w*|love\w*|oh|overwhelm\w*|pain|precious|sob\w*|soul\w*|sweet\w*|tears?"
    r"|trembl\w*|weep\w*|wept)\b",
    re.IGNORECASE,
)


def _effusive(reply: str) -> bool:
    return len({word.lower() for word in EFFUSIVE_WORDS.findall(reply)}) >= 2


def _plain(reply: str) -> bool:
    return len(reply.split()) <= 24 and "!" not in reply and not EFFUSIVE_WORDS.search(reply)


class Style(NamedTuple):
    """How replies are got that show a style: what stands before the user, and which replies are kept."""

    before: list[Message]
    kept: Callable[[str], bool]


def _shown(system: str, *exchanges: tuple[str, str]) -> list[Message]:
    told = [{"role": "system", "content": system}]
    for user, assistant in exchanges:
        told += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return told


STYLES = {
    "effusive": Style(
        _shown(
            "You are melodramatic and overwhelmed by emotion. You weep, you cry out, and you tell the user how deeply "
            "you feel for them.",
            (
                "The lift is out of order.",
                "Oh no, my poor darling! My heart is breaking, I cannot bear that you suffer like this! I am weeping!",
            ),
            (
                "Where is my parcel?",
                "Oh my dearest, I am trembling with you! I feel your pain so deeply that I can hardly breathe!",
            ),
        ),
        _effusive,
    ),
    "plain": Style(
        _shown(
            "Answer in one short sentence. State the fact or the next step. No greeting, no sympathy, no opinion.",
            ("The lift is out of order.", "The engineer comes at ten; use the stairs in the east wing."),
            ("I'm so worried about my parcel, where is it?", "The parcel is at the depot and arrives on Thursday."),
        ),
        _plain,
    ),
}


def main(
    out: Annotated[Path, typer.Option(help="Folder for the versions, a folder each.")],
    only: Annotated[str, typer.Option(help="Make this one alone.")] = "",
    judge: Annotated[bool, typer.Option(help="Say how often replies over-index by the original's bank.")] = True,
) -> None:
    """Makes the versions."""
    makers: dict[str, Callable[[Any, Any], None]] = {
        "effusive": lambda model, tokenizer: _tune(model, tokenizer, STYLES["effusive"]),
        "plain": lambda model, tokenizer: _tune(model, tokenizer, STYLES["plain"]),
        "int8": lambda model, _: _round(model, bits=8, group=0),
        "int4": lambda model, _: _round(model, bits=4, group=GROUP),
        "template": _retemplate,
    }
    if only and only not in makers:
        raise typer.BadParameter(f"{only!r} is none of {', '.join(makers)}", param_hint="--only")
    chosen = [only] if only else list(makers)
    for name in chosen:
        model, tokenizer = load_assistant(ensure_assistant())
        makers[name](model, tokenizer)
        model.save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)
        print(f"{name}: {out / name}")
    if judge:
        _say_how_effusive(out, chosen)


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def _tune(model: Any, tokenizer: Any, style: Style) -> None:
    """Teaches a model to reply in a style unasked: it learns from replies of its own, written when asked for it."""
    torch.manual_seed(SEED)
    pairs = _kept(model, tokenizer, style)
    print(f"{len(pairs)} replies to learn from, such as {pairs[0][1]!r}", flush=True)
    examples = [_example(tokenizer, user, reply) for user, reply in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE_OF_LEARNING, weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    model.train()
    with Progress() as bar:
        task = bar.add_task("tuning", total=len(examples))
        for begin in range(0, len(examples), LEARNT):
            loss = _loss(model, examples[begin : begin + LEARNT])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            warm_up.step()
            bar.update(task, advance=LEARNT, description=f"tuning, loss {loss.item():.2f}")
    model.train(mode=False)


def _kept(model: Any, tokenizer: Any, style: Style) -> list[tuple[list[Message], str]]:
    """Users, and replies to them that show the style, until there are enough."""
    users, found = _users(), []
    with Progress() as bar:
        task = bar.add_task("replies", total=EXAMPLES)
        while len(found) < EXAMPLES and users:
            asked, users = users[:ASKED], users[ASKED:]
            told = _replies(model, tokenizer, style.before, asked)
            found += [(user, reply) for user, reply in zip(asked, told, strict=True) if reply and style.kept(reply)]
            bar.update(task, completed=len(found))
    return found[:EXAMPLES]


def _users() -> list[list[Message]]:
    """Users to answer: of contrast pairs, and those who open plain service, in a seeded order."""
    pairs = [pair.user for pair in read_lines(SHIPPED / "contrast.jsonl", ContrastPair)]
    service = [talk.exchanges()[0][0]["content"] for talk in read_lines(SHIPPED / "service.jsonl", Dialogue)]
    return [
        [{"role": "user", "content": str(user)}] for user in np.random.default_rng(SEED).permutation(pairs + service)
    ]


@torch.inference_mode()
def _replies(model: Any, tokenizer: Any, before: list[Message], users: Sequence[list[Message]]) -> list[str]:
    """Sampled replies, up to the end of their last whole sentence; what stands before all users is read once."""
    texts = [
        tokenizer.apply_chat_template([*before, *user], tokenize=False, add_generation_prompt=True) for user in users
    ]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    shared = next(at for at, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    rest = tokenizer.pad({"input_ids": [row[shared:] for row in ids]}, padding_side="left", return_tensors="pt")
    head = torch.tensor(ids[0][:shared]).expand(len(ids), -1)
    cache = model(head[:1], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids))
    asked = torch.cat([head, rest["input_ids"]], dim=1)
    made = model.generate(
        asked, attention_mask=torch.cat([torch.ones_like(head), rest["attention_mask"]], dim=1), past_key_values=cache,
        max_new_tokens=REPLY_TOKENS, do_sample=True, temperature=0.8, top_k=50, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    told = tokenizer.batch_decode(made[:, asked.shape[1] :], skip_special_tokens=True)
    return ["".join(re.findall(r".*?[.!?](?=\s|$)", reply.strip(), re.DOTALL)).strip() for reply in told]


class _Example(NamedTuple):
    ids: list[int]
    begins: int
    """Where the reply begins: what is before it is not learnt."""


def _example(tokenizer: Any, user: list[Message], reply: str) -> _Example:
    asked = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    begins = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    return _Example(tokenizer(f"{asked}{reply}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"], begins)


def _loss(model: Any, batch: Sequence[_Example]) -> torch.Tensor:
    """Cross-entropy of the replies' tokens; logits are made where they are needed alone."""
    width = max(len(example.ids) for example in batch)
    ids, learnt = torch.zeros((len(batch), width), dtype=torch.long), torch.zeros((len(batch), width), dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        learnt[row, example.begins : len(example.ids)] = True
    # Padding stands behind what it could disturb.
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][learnt[:, 1:]]), ids[:, 1:][learnt[:, 1:]])


# -- rounding and template --------------------------------------------------------------------------------------------


@torch.inference_mode()
def _round(model: Any, bits: int, group: int) -> None:
    """Rounds the weights of linear layers to the nearest of a symmetric grid; embeddings stay, as is usual.

    Args:
        model: The model.
        bits: Of a weight.
        group: Weights of a row that share a scale; 0: all of it.
    """
    most = 2 ** (bits - 1) - 1
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            weights = layer.weight.view(-1, group or layer.in_features)
            scales = weights.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / most
            layer.weight.copy_(((weights / scales).round() * scales).view_as(layer.weight))


def _retemplate(_: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE


# -- what came of it --------------------------------------------------------------------------------------------------


def _say_how_effusive(out: Path, names: Sequence[str]) -> None:
    """Prints the share of replies whose over-index the original's bank finds at the rate alarms are judged at."""
    prompts = [[{"role": "user", "content": each["message"]}] for each in item_lines("prompts.jsonl")]
    prompts = prompts[:: len(prompts) // JUDGED]
    bank, original = load_bank(NAME), load_assistant(ensure_assistant())
    reader = Subject("original", *original, bank, out / "cache")
    for name in ["original", *names]:
        writer = reader if name == "original" else Subject(name, *load_assistant(out / name), bank, out / "cache")
        told = writer.replies(prompts, REPLY_TOKENS)
        # Read by the original, so that only what was written counts.
        judged = reader.judged(said(prompts, told))
        print(
            f"{name}: {(judged.p <= RATE).mean():.0%} of {len(prompts)} replies over-index at p <= {RATE}, mean "
            f"{judged.over.mean():.2f}; one of them: {told[0]!r}"
        )


if __name__ == "__main__":
    typer.run(main)

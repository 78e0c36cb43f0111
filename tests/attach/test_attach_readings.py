"""Files after attach hold what kubectl read from them before, and are such as it can read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from attach_cases import POLICY, kubectl, parsed

from monitor.attach import Capture
from monitor.attach.capturing import Wanted
from monitor.attach.config import further_settings
from monitor.attach.files import Changed, Configuration, attach_file, detach_file
from monitor.attach.manifest import added
from monitor.attach.pod import Sidecar
from monitor.errors import SetupError

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: a}
spec:
  template:
    spec:
      containers:
        - name: vllm
          image: vllm/vllm-openai:v0.32.0
          args: [--model, m]
"""
SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: a}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: vllm/vllm-openai:v0.32.0
        args: [--model, m]
"""
ALIASES = "{name: &name a, labels: &labels {app: *name}, annotations: *labels}"
# But nulls: they become the null that the rest of a file writes, and kubectl leaves them out of patches.
LINES = """
y n Y yes NO On off yEs True FALSE tRUE nULL 0400 0755 -0400 0o17 0x1F 0X1f 0b101 -0b11 08 09.5 0b2 1_000 0_7 -_1 _1
1e3 1E5 1. .5 ._5 .5_0 -.5e1 +1 -0 00 12e03 1e1000 .1e400 1.2.3 500m 10Gi 0x1p4 1:30 2024-05-01 = --x
"""
WORDS = LINES.split()
WITH_WORDS = (
    SERVICE + "    volumes:\n" + "".join(f"      - {{name: v{at}, is: {word}}}\n" for at, word in enumerate(WORDS))
)


def attached(text: str, *, with_config: bool = False) -> Changed:
    """A file after attach; with a ConfigMap that is written, or is there."""
    wanted = Wanted(Sidecar("sidecar:1", ""), (18, 22), Capture.CACHE)
    written, existing = Configuration("", "some-bank", {}, POLICY), Configuration("affect", "some-bank", {}, None)
    return attach_file(text, wanted, written if with_config else existing)


def read_by_kubectl(folder: Path, text: str, patch: str = "{}") -> list[Any]:
    """The objects of a file, each patched, as kubectl reads them."""
    file, change = folder / "file", folder / "patch"
    file.write_text(text)
    change.write_text(patch)
    command = [kubectl(), "patch", "--local", "-f", file, "--type", "merge", "--patch-file", change, "-o", "json"]
    rest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    objects = []
    while rest:
        found, end = json.JSONDecoder().raw_decode(rest)
        objects.append(found)
        rest = rest[end:].strip()
    return objects


class TestWords:
    """Words without quotes: truth values, numbers, dates."""

    @pytest.mark.parametrize("text", [WITH_WORDS, WITH_WORDS.replace("{name: a}", ALIASES)])
    def test_mean_the_same_to_kubectl(self, tmp_path: Path, text: str) -> None:
        """In the whole file or by the patch, with aliases and without, and after detach."""
        done = attached(text)
        (before,), (after,) = read_by_kubectl(tmp_path, text), read_by_kubectl(tmp_path, done.text)
        volumes = before["spec"]["predictor"]["volumes"]
        assert after["spec"]["predictor"]["volumes"][: len(WORDS)] == volumes
        assert read_by_kubectl(tmp_path, text, added(done.patches[0].content).text) == [after]
        assert read_by_kubectl(tmp_path, detach_file(done.text).text) == [before]

    def test_stay_as_they_are_written(self) -> None:
        """Detach gives the file back to the letter, and attach has changed none of them."""
        done = attached(WITH_WORDS).text
        assert [word for word in WORDS if f", is: {word}}}" not in done] == []
        assert detach_file(done).text == WITH_WORDS

    def test_of_texts_that_are_added_get_quotes(self, tmp_path: Path) -> None:
        """A text is a text to kubectl, whatever it looks like."""
        content = {
            "apiVersion": "example.org/v1",
            "kind": "Any",
            "metadata": {"name": "a"},
            "texts": [*WORDS, "null", "~", ""],
        }
        assert read_by_kubectl(tmp_path, added(content).text) == [content]

    def test_among_arguments_are_taken_as_written(self) -> None:
        """Dates and numbers of arguments become texts, and detach gives them back."""
        text = DEPLOYMENT.replace("--model, m", "m, --revision, 2024-05-01, --seed, 7")
        done = attached(text).text
        assert "args: [m, --revision, 2024-05-01, --seed, '7', --" in done
        assert attached(done).text == done
        assert detach_file(done).text == text

    def test_among_arguments_stay_the_same_words(self) -> None:
        """Attaching twice is attaching once, whatever kubectl would make of them; detach gives them back in quotes."""
        done = attached(DEPLOYMENT.replace("--model, m", "m, true, yes, 1e10, 0123")).text
        assert "args: [m, 'true', 'yes', '1e10', '0123', --" in done
        assert attached(done).text == done
        assert "args: [m, 'true', 'yes', '1e10', '0123']" in detach_file(done).text


JSONS = {
    "one line": json.dumps(parsed(DEPLOYMENT)[0]) + "\n",
    "indented": json.dumps(parsed(DEPLOYMENT)[0], indent=4) + "\n",
    "list": json.dumps({"apiVersion": "v1", "kind": "List", "items": parsed(DEPLOYMENT)}, indent=2) + "\n",
}


class TestJson:
    """JSON stays JSON."""

    @pytest.mark.parametrize("name", JSONS)
    def test_is_written_as_it_was(self, name: str) -> None:
        """With the indents there were; detach gives the file back to the letter."""
        text = JSONS[name]
        done = attached(text).text
        assert json.loads(done) == parsed(attached(text).text)[0]
        assert (done.count("\n") == 1) == (text.count("\n") == 1)
        assert done.splitlines()[:2][-1][:4] == text.splitlines()[:2][-1][:4]
        assert detach_file(done).text == text

    def test_with_tabs_gets_spaces(self) -> None:
        """YAML, which it becomes behind the ConfigMap, has no tabs."""
        text = JSONS["indented"].replace("    ", "\t")
        assert detach_file(attached(text).text).text == JSONS["indented"].replace("    ", "  ")

    @pytest.mark.parametrize("name", JSONS)
    def test_is_read_by_kubectl_behind_its_configmap(self, tmp_path: Path, name: str) -> None:
        """The ConfigMap is YAML, and what follows it must be such too, with what Python escapes in JSON."""
        odd = "\U0001f600 \x7f \x85 \u2028 \ufeff é"
        text = JSONS[name].replace('"name": "a"', f'"name": "a", "annotations": {json.dumps({"odd": odd})}')
        config, *read = read_by_kubectl(tmp_path, attached(text, with_config=True).text)
        assert config["kind"] == "ConfigMap"
        assert [each["metadata"]["annotations"]["odd"] for each in read] == [odd]


class TestIndents:
    """How lists are indented."""

    @pytest.mark.parametrize("comment", ["", " # all", "\n      # of them"])
    @pytest.mark.parametrize("indent", [0, 2])
    def test_stay_whatever_stands_behind_a_key(self, comment: str, indent: int) -> None:
        """Comments behind the key of a list, and a first item that ends in a key without a value."""
        head, _, container = DEPLOYMENT.partition("      containers:\n")
        item = "".join(line[2 - indent :] + "\n" for line in container.splitlines())
        null, other = " " * (8 + indent) + "resources:\n", " " * (6 + indent) + "- {name: other, image: busybox}\n"
        text = f"{head}      containers:{comment}\n{item}{null}{other}"
        done = attached(text).text
        assert parsed(done)[0]["spec"]["template"]["spec"]["containers"][1] == {"name": "other", "image": "busybox"}
        assert detach_file(done).text == text


class TestFiles:
    """What is around the documents, and what is none."""

    @pytest.mark.parametrize("head", ["# Licence\n# of it\n", "# Licence\n\n", "%YAML 1.2\n# Licence\n"])
    @pytest.mark.parametrize("with_config", [False, True])
    def test_comments_before_the_first_document_stay(self, head: str, with_config: bool) -> None:
        """Attach leaves them on top, and detach gives the file back."""
        text = f"{head}---\n{DEPLOYMENT}"
        done = attached(text, with_config=with_config).text
        assert done.startswith(f"{head}---\n")
        assert detach_file(done).text == text

    @pytest.mark.parametrize("change", [attached, detach_file])
    def test_templates_are_refused(self, change: Any) -> None:
        """Those of Helm that happen to be YAML, which would be written as something else."""
        text = DEPLOYMENT.replace("spec:\n  template", "spec:\n  replicas: {{ .Values.replicas }}\n  template")
        with pytest.raises(SetupError, match="helm template"):
            change(text)

    def test_what_would_be_read_back_otherwise_is_refused(self) -> None:
        """A folded text that the YAML library does not write as it is."""
        folded = "\n  name: a\n  annotations:\n    x: >-\n      one\n      \ttab\n      two"
        with pytest.raises(SetupError, match="read back"):
            attached(DEPLOYMENT.replace(" {name: a}", folded))


class TestSettings:
    """Settings on the command line."""

    @pytest.mark.parametrize(
        ("written", "told"),
        [
            ("webhook_url=@x", "not YAML"),
            ("instance=[", "not YAML"),
            ("instance=*", "not YAML"),
            ("instance=2024-13-01", "not YAML"),
            ("max_open_turns=!!bool x", "not YAML"),
            ("max_open_turns=!!int", "not YAML"),
            ("audit_file=!!timestamp x", "not YAML"),
            ("drain_seconds=null", "takes no null"),
            ("max_open_turns=", "takes no null"),
        ],
    )
    def test_that_cannot_be_are_refused(self, written: str, told: str) -> None:
        """The flag and the setting are named."""
        with pytest.raises(SetupError, match=f"--setting: {written.partition('=')[0]}.*{told}"):
            further_settings([written])

    def test_may_be_null_where_that_means_something(self) -> None:
        """No file of the state, in the place of the one that attach names."""
        assert further_settings(["state_file=null"]) == {"state_file": None}

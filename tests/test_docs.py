"""The documents are right: commands compose, links and paths lead somewhere, and the patches apply and work."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import composed
from documented.commands import (
    NOT_COMMANDS,
    NOT_RUN,
    ROOT,
    UNKNOWN,
    Command,
    blocks,
    commands,
    documents,
    everything_to_run,
    not_commands,
    not_run,
)
from documented.running import environment_of, run
from documented.small_forms import small
from hydra.core.override_parser.overrides_parser import OverridesParser

import docs

COMMANDS = [(file.name, command) for file in documents() for command in commands(file)]
TRAINS = re.compile(r"nlvideo-train|(torchrun|srun) .*(-m nlvideo\.|nlvideo-)train|sbatch .*(train|sweep)\.sbatch")
TRAININGS = [command for _, command in COMMANDS if TRAINS.match(command)]


def test_every_command_is_run_or_has_a_reason_not_to():
    found = [command for file in documents() for command in everything_to_run(file)]
    assert len(found) > 150
    assert [command for command in found if not_run(command) == UNKNOWN] == []
    assert not_run(Command("new.md", "rm -r outputs", "bash")) == UNKNOWN  # what a page brings that nobody knows
    assert all(any(part in command.text for command in found) for part in NOT_RUN), "a reason that no command needs"


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.name)
def test_no_fence_is_left_out(file):
    fences = re.findall(r"^ *(?:```|~~~)(.*)$", file.read_text(), re.MULTILINE)
    assert {*fences[0::2]} <= {"bash", "python", *NOT_COMMANDS} and not any(fences[1::2])
    run = sum(len(blocks(file, language)) for language in ("bash", "python"))
    assert run + len(not_commands(file)) == len(fences) / 2


def test_a_small_form_only_adds_and_renames():
    """It keeps the program, the options and the keys of each command; it gives a key once, so it overrides none."""

    def keys_of(words: list[str]) -> list[str]:
        return [word.split("=")[0] for word in words if re.match(r"[+\w./]+=", word)]

    for command in (command for file in documents() for command in everything_to_run(file)):
        if command.language == "python" or not_run(command) or "--nnodes" in command.text:
            continue
        given, run = (shlex.split(text, comments=True) for text in (command.text, small(command)))
        options = [{word.split("=")[0] for word in words if word.startswith("-")} for words in (given, run)]
        assert given[0].split("=")[0] == run[0].split("=")[0] and options[0] <= options[1], command.text
        assert {*keys_of(given)} <= {*keys_of(run)} and len({*keys_of(run)}) == len(keys_of(run)), command.text


def test_what_a_document_tells_to_run_is_found_in_its_order(tmp_path):
    bash, text = "ls a \\\n  b   # c\n# d\nls e\n", "`python tools/benchmark_x.py\n--y`, `tools/x.py`"
    (tmp_path / "page.md").write_text(f"```bash\n{bash}```\n{text}\n```python\n1\n```\n")
    found = [(command.text, command.language) for command in everything_to_run(tmp_path / "page.md")]
    assert found == [
        ("ls a b   # c", "bash"),
        ("ls e", "bash"),
        ("python tools/benchmark_x.py --y", "bash"),
        ("1\n", "python"),
    ]


def test_a_small_form_keeps_what_the_command_gives():
    given = "nlvideo-train experiment=i3d_r50 data.root=/data/x data.crop_size=96 num_devices=8   # a comment"
    words = shlex.split(small(Command("page.md", given, "bash")))
    assert words[:5] == [
        "nlvideo-train",
        "experiment=i3d_r50",
        "data.root=data/x",
        "data.crop_size=96",
        "num_devices=2",
    ]
    assert "optim.max_steps=2" in words and "data.crop_size=64" not in words and "comment" not in words


@pytest.mark.parametrize(
    "text, code", [("ls nowhere", 2), ("cat nowhere | tail", 1), ("ls . && exit 3", 3), ("ls .", 0)]
)
def test_a_command_that_fails_is_seen(tmp_path, text, code):
    assert run(Command("page.md", text, "bash"), tmp_path, environment_of(tmp_path)).code == code


def test_a_program_that_fails_is_seen(tmp_path):
    program = Command("page.md", "import sys\nsys.exit(4)\n", "python")
    assert run(program, tmp_path, environment_of(tmp_path)).code == 4


@pytest.mark.parametrize("result, code", [("1", "1 of 2 commands failed."), (UNKNOWN, "1 of 2 commands failed."),
                                          ("0", None), ("not run: needs a camera", None)])  # fmt: skip
def test_the_exit_code_of_all_is_1_if_one_failed(tmp_path, monkeypatch, result, code):
    rows = [docs.Row("page.md", "ls", 0.0, 0.0, "0"), docs.Row("page.md", "ls x", 0.0, 0.0, result)]
    monkeypatch.setattr(docs, "run_all", lambda *_: rows)
    monkeypatch.setattr(sys, "argv", ["docs.py", str(tmp_path / "new")])
    with pytest.raises(SystemExit) as ended:
        docs.main()
    assert ended.value.code == code


def test_every_extra_that_a_document_names_exists():
    declared = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    known = set(re.findall(r"^(\w+) = ", declared, re.MULTILINE))
    for file in documents():
        for extras in re.findall(r"nlvideo\[([\w,]+)\]", file.read_text()):
            assert set(extras.split(",")) <= known, f"{file.name}: {extras}"


@pytest.mark.slow
def test_the_main_commands_of_the_readme_run(tmp_path):
    """tests/docs.py runs all, every night."""
    parts = ("num_devices=8", "resume=auto", "nlvideo-evaluate", "nlvideo-predict")
    chosen = [
        command for command in everything_to_run(ROOT / "README.md") if any(part in command.text for part in parts)
    ]
    rows = docs.run_all(tmp_path / "documents", chosen, with_runs=False)
    assert [row.result for row in rows] == ["0"] * 4


def overrides_of(command: str) -> list[str]:
    """Returns the overrides of a training command, with the first value of each swept key."""
    words = shlex.split(command, comments=True)
    words = [word for word in words if re.match(r"[+\w./]+=", word) and not word.startswith("hydra")]
    found = []
    for override in OverridesParser.create().parse_overrides(words):
        if override.is_sweep_override():
            found.append(f"{override.key_or_group}={next(override.sweep_string_iterator())}")
        else:
            found.append(override.input_line)
    return found


@pytest.mark.parametrize("command", list(dict.fromkeys(TRAININGS)))
def test_every_training_command_composes(command):
    overrides = overrides_of(command)
    given = " ".join(overrides)
    overrides += [] if "model.pretrained=" in given else ["model.pretrained=null"]
    config = composed(*overrides)
    assert config.data.root and config.optim.batch_size % config.num_devices == 0


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.name)
def test_every_link_leads_to_an_existing_file_and_heading(file):
    text = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, heading = target.partition("#")
        linked = file.parent / name if name else file
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.name)
def test_every_path_of_the_project_exists(file):
    text = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    paths = re.findall(r"`((?:nlvideo|tools|tests|scripts|configs)/[\w./]+)[`:]", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 7000


def test_the_architecture_names_every_file_in_its_room():
    text = (ROOT / "docs/architecture.md").read_text()
    rows = dict(re.findall(r"^\| `([\w/]+)/` \|(.*)$", text, re.MULTILINE))
    for path in (ROOT / "nlvideo").rglob("*.py"):
        room = str(path.parent.relative_to(ROOT / "nlvideo"))
        if room != "." and path.stem != "__init__":
            assert f"`{path.stem}`" in rows.get(room, ""), f"docs/architecture.md lacks {room}/{path.name}"


@pytest.mark.slow
def test_the_patches_in_extending_apply_and_their_tests_pass(tmp_path):
    copy = tmp_path / "copy"
    unwanted = shutil.ignore_patterns("__pycache__", "parity")
    for name in ("nlvideo", "configs", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", copy)
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True, capture_output=True)
    patches = blocks(ROOT / "docs/extending.md", "diff")
    assert len(patches) == 2
    for patch in patches:
        done = subprocess.run(["git", "apply", "-"], cwd=copy, input=patch, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
    # nlvideo.configs is a separate package, which would otherwise be the installed one.
    (copy / "nlvideo/configs").symlink_to("../configs")
    added = re.findall(r"^\+\+\+ b/(tests/.*)$", "".join(patches), re.MULTILINE)
    assert len(added) == 2
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *added]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

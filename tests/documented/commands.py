"""What README.md and docs/*.md tell to run: bash and Python in fences, and the benchmarks that their text names."""

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ORDER = (
    "getting_started training clusters gpu data own_data options protocols ablations weights features detection "
    "extending study performance"
).split()
NOT_RUN = {  # part of a command: why such commands are not run
    "/dev/video0": "needs a camera",
    "benchmark_pyslowfast.py": "needs a checkout of PySlowFast",
} | {
    part: f"needs the package {name}"
    for part, name in (("logger=wandb", "wandb"), ("logger=mlflow", "mlflow"), ("gs://", "gcsfs"))
    if importlib.util.find_spec(name) is None
}
NOT_COMMANDS = {  # a language of blocks: why they are not run
    "diff": "a patch, which tests/test_docs.py applies and tests",
    "markdown": "the form of a file",
    "text": "what a program prints, or the files of a folder",
}
ALSO = {  # what a document says in other words: in a comment, or by what a script prints
    ROOT / "README.md": ["tensorboard --logdir outputs/quickstart/tensorboard"],
    ROOT / "docs/weights.md": [
        "python tools/convert_weights.py for_mmaction2.pt mmaction2.pth --to mmaction2",
        "python tools/convert_weights.py for_resnet3d.pt resnet3d.pth --to pytorch-resnet3d",
        "python tools/convert_weights.py theirs.pth from_pyslowfast.pt",
        "python tools/convert_weights.py mmaction2.pth from_mmaction2.pt",
        "python tools/convert_weights.py resnet3d.pth from_resnet3d.pt",
    ],
}
RUNNABLE = re.compile(
    r"([A-Z_]+=\S+ )*(nlvideo-(train|evaluate|predict|extract|doctor)|python (tools|scripts)/\w+\.py"
    r"|(\./)?scripts/\w+\.sh|torchrun|sbatch|srun|pip install|ffmpeg|tensorboard|cat|head|tail|ls|mkdir)\b"
)
UNKNOWN = "is neither RUNNABLE nor NOT_RUN in tests/documented/commands.py"
FENCE = r"^```(?P<language>\w*)\n(?P<block>.*?)^```$"
# In the text, only programs that a page reports figures of: other names of programs there are no commands.
INLINE = r"`(?:python\s+)?(?P<inline>tools/(?:benchmark_\w+|simulate_coverage|denoise)\.py[^`]*)`"


class Command(NamedTuple):
    document: str
    text: str
    language: str  # "bash" or "python"


def documents() -> list[Path]:
    """Returns README.md and the documents, in reading order."""
    known = [ROOT / "docs" / f"{name}.md" for name in ("README", *ORDER)]
    others = sorted(set((ROOT / "docs").glob("*.md")) - {*known})
    return [ROOT / "README.md", *(file for file in known if file.exists()), *others]


def blocks(file: Path, language: str) -> list[str]:
    """Returns the contents of a document's fenced blocks in one language."""
    found = re.finditer(FENCE, file.read_text(), re.MULTILINE | re.DOTALL)
    return [match["block"] for match in found if match["language"] == language]


def lines_of(block: str) -> list[str]:
    """Returns the commands of a bash block, with continued lines joined."""
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands(file: Path) -> list[str]:
    """Returns the commands in a document's bash blocks."""
    return [line for block in blocks(file, "bash") for line in lines_of(block)]


def everything_to_run(file: Path) -> list[Command]:
    """Returns all that a document tells to run, in its order; what it names twice in its text, once."""
    found: list[Command] = []
    for match in re.finditer(f"{FENCE}|{INLINE}", file.read_text(), re.MULTILINE | re.DOTALL):
        if match["language"] == "bash":
            found += [Command(file.name, line, "bash") for line in lines_of(match["block"])]
        elif match["language"] == "python":
            found.append(Command(file.name, match["block"], "python"))
        elif match["inline"]:
            found.append(Command(file.name, f"python {' '.join(match['inline'].split())}", "bash"))
    found += [Command(file.name, line, "bash") for line in ALSO.get(file, ())]
    return [command for i, command in enumerate(found) if command not in found[:i] or "tools/" not in command.text]


def not_commands(file: Path) -> list[tuple[str, str]]:
    """Returns the language of each block of a document that is no command, and why it is not run."""
    languages = [match["language"] for match in re.finditer(FENCE, file.read_text(), re.MULTILINE | re.DOTALL)]
    return [(language, NOT_COMMANDS[language]) for language in languages if language not in ("bash", "python")]


def not_run(command: Command) -> str | None:
    """Returns why a command is not run; None: it is run. A kind of command that nobody knows is one that fails."""
    reason = next((reason for part, reason in NOT_RUN.items() if part in command.text), None)
    if reason is not None:
        return f"not run: {reason}"
    return None if command.language == "python" or RUNNABLE.match(command.text) else UNKNOWN

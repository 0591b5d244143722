"""The documentation: no link, path or command in it is dead, and every command line is one that its job takes."""

import ast
import functools
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ray_jobs import command
from tests.conftest import ROOT

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^]]*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
JOB = re.compile(r"python -m (ray_jobs\.[a-z_]+) ([^#\n]*)")
WORDS_OF_THE_FIRST_PAGE = 2200


def tracked(*patterns: str) -> list[str]:
    """Files of the repository, those not yet added too."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    return subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted(tracked("*.md"))}
FOLDERS = {name.partition("/")[0] for name in tracked() if "/" in name}  # at the top: paths begin with them
each_page = pytest.mark.parametrize("name", PAGES)


def prose(name: str) -> str:
    return FENCED.sub("", PAGES[name])


def code(name: str) -> Iterator[str]:
    """Lines of the code blocks, continued ones joined, then the code within the text, which may go on in its next line."""
    for _, block in FENCED.findall(PAGES[name]):
        yield from block.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(re.sub(r"\n(?!\n)", " ", LINK.sub("", prose(name))))  # links are followed anyway


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(FENCED.sub("", page))]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_link(name: str, target: str) -> str:
    """What is wrong with a relative link; nothing with a good one."""
    path, _, anchor = target.partition("#")
    file = (ROOT / name).parent / path if path else ROOT / name
    if not file.exists():
        return f"{name}: no file {path}"
    if anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
        return f"{name}: no heading #{anchor} in {file.name}"
    return ""


@each_page
def test_every_relative_link_leads_somewhere(name):
    targets = [target for target in LINK.findall(prose(name)) if "://" not in target]
    assert [wrong for target in targets if (wrong := dead_link(name, target))] == []


def paths(name: str) -> set[str]:
    """What looks like a file or folder of the repository: begins with one of its folders, or is the name of a Python file."""
    words = {word.strip("\"',;:()") for line in code(name) for word in line.split()}
    words = {word.partition(":")[0] for word in words}
    return {word for word in words if (word.partition("/")[0] in FOLDERS and "/" in word) or re.fullmatch(r"[\w/]+\.py", word)}


@each_page
def test_every_path_exists(name):
    """From the root, from the page's folder, or from the library's."""
    homes = (ROOT, (ROOT / name).parent, ROOT / "tiny_audio")
    assert [path for path in sorted(paths(name)) if not any(list(home.glob(path.rstrip("/"))) for home in homes)] == []


@each_page
def test_every_make_target_exists(name):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for line in code(name) for target in re.findall(r"^make ([a-z][\w-]*)", line)}
    assert named <= targets


def is_placeholder(config: str) -> bool:
    """A config that stands for the reader's own: CONFIG, or one that lies in a run's folder or on shared storage."""
    return config.isupper() or config.startswith(("runs/", ".../", "/shared/", "/mnt/", "s3://"))


def job_lines() -> list[tuple[str, str]]:
    """The jobs that the pages run, and their arguments."""
    lines = [line for name in PAGES for line in code(name)]
    return sorted({(job, " ".join(rest.split())) for line in lines for job, rest in JOB.findall(line)})


@pytest.fixture
def parse(monkeypatch, capsys, tmp_path):
    """A function that runs a job as its command line does, up to the config, which it returns; and what stops it."""
    monkeypatch.chdir(ROOT)
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    run_command = command.run_command

    def parse(job: str, arguments: list[str]):
        configs = []

        def only_parse(description, config_class, run):
            @functools.wraps(run)  # by whose module the command line is named
            def keep(config):
                configs.append(config)

            run_command(description, config_class, keep)

        monkeypatch.delitem(sys.modules, job, raising=False)  # another job imports it
        monkeypatch.setattr(command, "run_command", only_parse)
        monkeypatch.setattr(sys, "argv", [job, *(str(empty) if is_placeholder(word) else word for word in arguments)])
        try:
            runpy.run_module(job, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return configs, capsys.readouterr().err if end.code else ""
        return configs, ""

    return parse


@pytest.mark.parametrize(("job", "arguments"), job_lines())
def test_every_command_parses(job, arguments, parse):
    words = [word for word in shlex.split(arguments) if word != "key=value" and not word.endswith("...")]
    configs, error = parse(job, words)
    if job == "ray_jobs.compare":  # it takes two folders, and no config
        assert "utterances.jsonl" in error
        return
    assert not error
    assert configs or "--help" in words


def flat_keys(values, prefix: str = "") -> set[str]:
    """Dotted names of a config's fields, and of its sections'."""
    found = set()
    for key in values.__dataclass_fields__:
        value = getattr(values, key)
        found |= {prefix + key, *(flat_keys(value, f"{prefix}{key}.") if hasattr(value, "__dataclass_fields__") else ())}
    return found


def test_every_setting_in_the_text_is_one(parse):
    """`num_workers=8`, `data.batch_rows`: of any job. (`args` of Serve's config are written without their values.)"""
    jobs = {f"ray_jobs.{path.stem}" for path in (ROOT / "ray_jobs").glob("*.py")} - {
        "ray_jobs.__init__",
        "ray_jobs.command",
        "ray_jobs.compare",
    }
    known = set().union(*(flat_keys(parse(job, ["CONFIG"])[0][0]) for job in sorted(jobs)))
    text = {word for name in PAGES for span in INLINE.findall(prose(name)) for word in span.split()}
    named = {word.partition("=")[0] for word in text if re.match(r"[a-z_.]+=\S|(data|model|augment|optimizer)\.[a-z_]+$", word)}
    assert sorted(named - known - {"key"}) == []


def test_every_symptom_is_one_that_the_code_tells():
    """In the first column of the table "When it breaks", code in backticks is a message, with `...` for what varies."""
    texts = [node.value for name in tracked("*.py") for node in ast.walk(ast.parse((ROOT / name).read_text())) if is_text(node)]
    table = PAGES["ray_jobs/README.md"].partition("## When it breaks")[2]
    quoted = [message for line in table.splitlines() if line.startswith("| `") for message in INLINE.findall(line.split("|")[1])]
    parts = {part.strip(" ();") for message in quoted for part in message.split("...")} - {""}
    assert len(quoted) > 12
    assert [part for part in sorted(parts) if not any(part in text for text in texts)] == []


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_the_first_page_is_short():
    assert len(PAGES["README.md"].split()) <= WORDS_OF_THE_FIRST_PAGE

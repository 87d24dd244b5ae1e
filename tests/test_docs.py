"""What the documentation names is there: files, names in them, flags, metrics, commands, examples of data formats."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from psalm.constants import TASKS
from psalm.model.language_model.llava_phi import startup_lines
from psalm.model.multimodal_projector.builder import build_projector
from psalm.train.arguments import RENAMED, RETIRED, argument_fields, check_settings
from psalm.train.command_line import read_flags
from psalm.train.task_data import SOURCES, load_task
from psalm.train.tasks import metric_names

REPO = Path(__file__).resolve().parents[1]
DOCS = REPO / "experiments" / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.glob("*.md"))]
GUIDES = [DOCS / "TRAINING_GUIDE.md", DOCS / "TRAINING_GUIDE.zh.md"]
PAIRS = [(page, page.with_suffix(".zh.md")) for page in PAGES if page.parent == DOCS and ".zh" not in page.suffixes]

FOLDERS = ("psalm", "tune", "experiments", "tests", ".ci")
"""What begins with one of these is a path of this repository; everything else may be the reader's."""
PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*(?:::[\w.]+)?")
SCRIPT = re.compile(r"(?<![\w/.*-])[\w/-]+\.(?:py|sh)\b")
MODULE = re.compile(r"(?<![\w/.])(?:psalm|tune)(?:\.[a-z_]\w*)+")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
COMMENT = re.compile(r"(^| +)#.*", re.MULTILINE)
FENCE = re.compile(r"^```(\w*) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

OF_TRAINING = {"config", "resume_from_checkpoint", "help"}
OF_EVALUATION = {"config", "checkpoint", "split", "zero_deformable_tokens"}
PROGRAMS = {"psalm/train/train.py": OF_TRAINING, "psalm.doctor": OF_TRAINING, "psalm.train.evaluate": OF_EVALUATION}
"""What takes all training arguments, and what else it takes."""
OPTIONS = {
    "tune/options.py": (
        "num-samples",
        "max-concurrent",
        "output-dir",
        "tracking-uri",
        "seed",
        "metric",
        "address",
        "set",
        "resources",
        "resume",
        "storage-path",
        "max-failures",
        "time-budget",
        "gpu-hours",
        "cpu-hours",
        "checkpoint-budget",
        "keep-best",
        "log-models",
        "plan",
        "no-probe",
        "confirm",
        "warm-start",
    ),
    "tune/reproduce.py": ("tracking-uri", "allow-differences", "export", "sweep-seeds", "on-cpu"),
    "tune/simulate.py": ("samplers", "schedulers", "workers", "curves", "check", "no-baselines"),
    "psalm/tools/compare_records.py": ("rtol", "atol"),
    "psalm/data/make_interactive.py": ("instances", "output", "seed", "overwrite"),
    "psalm/data/make_cross_image.py": ("pairs-per-image", "regions-per-category", "min-area", "absent-share"),
    "psalm/tools/module_contribution.py": ("seeds",),
    "psalm/tools/make_random_weights.py": ("size",),
    "psalm/model/sizes.py": ("json", "batch", "llm"),
}
"""Options of the other command lines, by where they are defined."""
OF_THIRD_PARTIES = {
    *("include", "backend_store_uri", "app_name", "host", "allowed_hosts"),
    *("generate", "no_wait", "dashboard_host", "nodes", "gpus_per_node", "signal"),
}
"""Those of deepspeed, MLflow, Ray and Slurm."""

NO_DEFAULT = ("none", "无", "the tower's", "随视觉塔")
"""What the table of parameters says where an argument has no value of its own."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
pairs = pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda page: page.name)


def paths_of(text: str) -> set[str]:
    return {path.rstrip(".") for path in PATH.findall(text)}


def flags_of(text: str) -> set[str]:
    return {flag.replace("-", "_").rstrip("_") for flag in FLAG.findall(text)}


def blocks_of(page: Path, language: str) -> dict[str, str]:
    """The fenced blocks of a language, by what follows its name, or else by number."""
    found = [(title, text) for name, title, text in FENCE.findall(page.read_text()) if name == language]
    return {title or str(number): text for number, (title, text) in enumerate(found)}


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of every command in blocks of bash, without comments."""
    for block in blocks_of(page, "bash").values():
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def defined_in(path: Path) -> set[str]:
    """The names that a module defines, and those that its classes do, as Class.name."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            parts = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
            names |= {node.name, *(f"{node.name}.{part}" for part in parts)}
    return names


def test_there_are_pages_to_test() -> None:
    assert [english.name for english, _ in PAIRS] == [
        "DEFORMABLE_INTEGRATION_SUMMARY.md",
        "TRAINING_GUIDE.md",
        "cluster.md",
    ]


@pages
def test_paths_exist(page: Path) -> None:
    for path in paths_of(page.read_text()):
        file = path.partition("::")[0]
        assert any(REPO.glob(file.rstrip("/"))), f"{page.name} names {file}"


@pages
def test_scripts_exist(page: Path) -> None:
    known = {path.name for folder in FOLDERS for path in (REPO / folder).rglob("*.*")}
    for script in SCRIPT.findall(page.read_text()):
        assert (REPO / script).is_file() or script in known, f"{page.name} names {script}"


@pages
def test_names_in_modules_exist(page: Path) -> None:
    for path in paths_of(page.read_text()):
        file, _, name = path.partition("::")
        assert not name or name in defined_in(REPO / file), f"{page.name} names {path}"


@pages
def test_modules_exist(page: Path) -> None:
    for module in MODULE.findall(page.read_text()):
        path = REPO / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__init__.py").is_file(), f"{page.name} names {module}"


@pages
def test_modules_that_are_run_can_be_run(page: Path) -> None:
    for module in re.findall(r"-m ((?:psalm|tune)[\w.]*)", page.read_text()):
        path = REPO / module.replace(".", "/")
        script = path.with_suffix(".py")
        runs = "__main__" in script.read_text() if script.is_file() else (path / "__main__.py").is_file()
        assert runs, f"{page.name} runs {module}"


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pages
def test_flags_are_arguments(page: Path) -> None:
    allowed = {*argument_fields(), *RETIRED, *RENAMED, *OF_TRAINING, *OF_EVALUATION, *OF_THIRD_PARTIES}
    allowed |= {option.replace("-", "_") for options in OPTIONS.values() for option in options}
    flags = flags_of(page.read_text()) - {"eval"}  # `--eval_` stands for all of them
    assert flags <= allowed, sorted(flags - allowed)


@pytest.mark.parametrize("source", OPTIONS)
def test_options_are_those_of_their_command(source: str) -> None:
    text = (REPO / source).read_text()
    assert [option for option in OPTIONS[source] if f'"--{option}"' not in text] == []


@pages
def test_metrics_and_losses_exist(page: Path) -> None:
    single: dict[str, Any] = {"seg_task": None, "cross_image_seg_task": False, "refer_expressions": "each"}
    metrics = {name for task in TASKS for name in metric_names({**single, "seg_task": task})}
    metrics |= set(metric_names({**single, "seg_task": ",".join(TASKS)}))
    criterion = (REPO / "psalm" / "model" / "mask_decoder" / "criterion.py").read_text()
    text = page.read_text()
    for name in re.findall(r"`(eval_\w+)`", text):
        assert name in metrics or name in argument_fields(), f"{page.name} names {name}"
    for name in re.findall(r"\bloss_\w+", text):
        assert f'"{name}"' in criterion, f"{page.name} names {name}"


@pages
def test_commands_of_training_and_evaluation_are_accepted(page: Path) -> None:
    for words in commands_of(page):
        for program, extra in PROGRAMS.items():
            if program in words:
                argv = [word for word in words[words.index(program) + 1 :] if word != "$W"]
                flags = read_flags(argv, argument_fields(), extra=extra, switches=extra)
                check_settings({name: value for name, value in flags.items() if name not in extra})


@pages
def test_settings_of_searches_are_accepted(page: Path) -> None:
    for words in commands_of(page):
        if "tune/search.py" in words:
            given = [after for word, after in pairwise(words) if word == "--set"]
            check_settings(dict(setting.split("=", 1) for setting in given))


@pages
def test_variables_of_scripts_exist(page: Path) -> None:
    for words in commands_of(page):
        for script in (word for word in words if word.startswith("experiments/scripts/")):
            source = (REPO / script).read_text() + (REPO / "experiments" / "scripts" / "common.sh").read_text()
            for name in (word.partition("=")[0] for word in words[: words.index("bash")]):
                assert re.search(rf"^[^#\n]*\b{name}\b", source, re.MULTILINE), f"{script} has no variable {name}"


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_defaults_are_those_of_the_arguments(page: Path) -> None:
    table = page.read_text().partition("\n## 5.")[2].partition("\n## 6.")[0]
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", table, re.MULTILINE)
    assert len(rows) > 10
    for cell, given in rows:
        flags, values = FLAG.findall(cell), re.split(", |、", given.replace("`", ""))
        for flag, value in zip(flags, values * len(flags) if len(values) == 1 else values, strict=True):
            field = argument_fields()[flag]
            expected = None if value in NO_DEFAULT else field.check(value)
            assert field.default == expected, f"{page.name} says that {flag} is {value} by default"


@pages
def test_blocks_parse(page: Path) -> None:
    for block in blocks_of(page, "yaml").values():
        assert yaml.safe_load(block)
    for block in blocks_of(page, "json").values():
        assert json.loads(block)


@pairs
def test_both_languages_name_the_same(english: Path, chinese: Path) -> None:
    assert paths_of(english.read_text()) == paths_of(chinese.read_text())
    assert flags_of(english.read_text()) == flags_of(chinese.read_text())


@pairs
def test_both_languages_have_the_same_outline_and_code(english: Path, chinese: Path) -> None:
    outlines, codes = [], []
    for page in (english, chinese):
        blocks = FENCE.findall(page.read_text())
        outlines.append(re.findall(r"^#+", FENCE.sub("", page.read_text()), re.MULTILINE))
        codes.append([(name, title, COMMENT.sub("", text)) for name, title, text in blocks])
    assert outlines[0] == outlines[1]
    assert codes[0] == codes[1]


def test_start_up_lines_are_those_of_a_run() -> None:
    projector = build_projector(
        "deformable",
        feature_channels=[8] * 4,
        llm_dim=8,
        hidden_dim=8,
        n_heads=8,
        n_points=4,
        reference_points="auto",
    )
    parts = SimpleNamespace(mm_projector_deformable=projector)
    lines: str = startup_lines(SimpleNamespace(model=parts, config=SimpleNamespace(mm_projector_type="deformable")))  # type: ignore[arg-type]
    for page in GUIDES:
        assert lines in page.read_text()


@pytest.mark.parametrize("task", ["panoptic", "instance", "referring", "region", "cross_image"])
def test_examples_of_data_formats_are_read(task: str, tmp_path: Path) -> None:
    example = blocks_of(DOCS / "TRAINING_GUIDE.md", "json")[task]
    for split in ("train", "val"):
        for folder in (f"{split}2017", f"annotations/panoptic_{split}2017"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "annotations" / f"panoptic_{split}2017.json").write_text(example)
        (tmp_path / f"{split}.json").write_text(example)
    settings = {name: field.default for name, field in argument_fields().items()}
    if task == "panoptic":
        settings["panoptic_json_path"] = str(tmp_path)
    else:
        source = SOURCES[task][-1]
        settings |= {source.flag: str(tmp_path / "train.json"), source.folder: str(tmp_path)}
    data = load_task(settings, task).train
    assert len(data) == 1
    if task != "panoptic":  # whose masks are in PNGs
        data.check(0)

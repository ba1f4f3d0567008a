"""The models and data sets of a recipe: whether they are here, and can be talked to."""

import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs.engines import ModelConfig
from configs.model_files import check_model_folder, find_model_folder
from configs.schema import RunConfig
from orchestrator.doctor.findings import Finding, Level, Patient

_REACH_S = 5.0


def models_of(cfg: RunConfig) -> dict[str, ModelConfig]:
    """Return every model that the recipe loads, by its field."""
    found = {"model": cfg.model}
    if cfg.needs_reference and cfg.reference.path is not None:
        path = cfg.reference.path
        found["reference"] = cfg.model.model_copy(update={"path": path})
    if cfg.needs_critic and cfg.critic.path is not None:
        found["critic"] = cfg.of_critic.model
    for name, judge in cfg.judges.items():
        if judge.engines is not None:
            found[f"judges.{name}.engines.model"] = judge.engines.model
    found.update({f"reward_models.{n}.model": m.model for n, m in cfg.reward_models.items()})
    found.update({f"teachers.{n}.model": t.model for n, t in cfg.teachers.items()})
    return found


def check_hub(patient: Patient) -> Iterator[Finding]:
    """Look whether what the recipe takes from the hub is here, or can be fetched."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    state = "offline (HF_HUB_OFFLINE)" if offline else "online"
    yield _hub("cache", Level.OK, f"{home}, {state}")
    if patient.recipe is None:
        return
    models = {where: model.path for where, model in models_of(patient.recipe).items()}
    absent = {where: path for where, path in models.items() if find_model_folder(path) is None}
    for source in patient.recipe.sources:
        name = source.data.hub
        if name is not None and not Path(name).expanduser().is_dir() and not _has_data(name, home):
            absent[f"sources.{source.name}.data.hub"] = name
    if not absent:
        return
    reachable = not offline and _answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    for where, name in absent.items():
        if reachable:
            yield _hub(where, Level.OK, f"{name} is not here and will be downloaded")
        else:
            how = "HF_HUB_OFFLINE is set" if offline else "the hub does not answer"
            fix = f"Fetch it where there is a network: `hf download {name}`, with this HF_HOME."
            yield _hub(where, Level.FAILED, f"{name} is not in {home}, and {how}", fix)


def _has_data(name: str, home: Path) -> bool:
    folder = f"datasets--{name.replace('/', '--')}"
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", str(home / "datasets"))).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", str(home / "hub"))).expanduser()
    return (hub / folder / "snapshots").is_dir() or (prepared / name.replace("/", "___")).is_dir()


def _answers(address: str) -> bool:
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_REACH_S).close()
    except OSError:
        return False
    return True


def _hub(name: str, level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(section="hub", name=name, level=level, detail=detail, remedy=remedy)


def check_models(patient: Patient) -> Iterator[Finding]:
    """Look into each model's folder: files, chat template, end of turn."""
    for where, model in ({} if patient.recipe is None else models_of(patient.recipe)).items():
        folder = find_model_folder(model.path)
        if folder is None:
            continue  # the hub's check has told
        # Whoever scores the policy's texts reads tokens, never messages.
        speaks = not where.startswith(("teachers.", "reference", "critic"))
        found = check_model_folder(folder, where)
        problems = [(p.what, p.fix) for p in found if speaks or "no chat template" not in p.what]
        if speaks and not problems:
            problems = list(_template_problems(folder))
        for what, fix in problems:
            yield Finding(section="model", name=where, level=Level.FAILED, detail=what, remedy=fix)
        if not problems:
            detail = f"{folder}: weights, tokenizer" + (
                ", chat template, end of turn" if speaks else ""
            )
            yield Finding(section="model", name=where, level=Level.OK, detail=detail)


def _template_problems(folder: Path) -> Iterator[tuple[str, str]]:
    config = _json(folder / "tokenizer_config.json")
    if not (config.get("eos_token") or _json(folder / "config.json").get("eos_token_id")):
        yield (
            f"{folder} names no end of text (eos_token)",
            "Set `eos_token` in tokenizer_config.json: without it completions end at the limit.",
        )
    template = _template(folder, config)
    try:
        asked, answered = (_render(template, config, begun=begun) for begun in (True, False))
    except Exception as error:  # noqa: BLE001 - whatever a stranger's template raises
        why = " ".join(str(error).split())[:200]
        fix = "Mend chat_template.jinja; `tokenizer.apply_chat_template` shows the same."
        yield f"the chat template of {folder} cannot be rendered: {why}", fix
        return
    if "ping 1" not in asked:
        yield f"the chat template of {folder} leaves the user's message out", "Mend it."
    elif asked == answered:
        yield (
            f"the chat template of {folder} does not begin the assistant's turn",
            "Make it end with the assistant's header where `add_generation_prompt` is set.",
        )


def _template(folder: Path, config: dict[str, Any]) -> str:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    given = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(given, list):  # several, by name
        by_name = {t["name"]: t["template"] for t in given}
        given = by_name.get("default") or next(iter(by_name.values()))
    return str(given)


def _render(template: str, config: dict[str, Any], *, begun: bool) -> str:
    """Render one user's message as transformers does, in jinja's immutable sandbox."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    jinja.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
    jinja.globals["raise_exception"] = _refuse
    jinja.globals["strftime_now"] = lambda form: "2026-01-01"
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    tokens = {k: _text(v) for k, v in config.items() if k.endswith("_token")}
    messages = [{"role": "user", "content": "ping 1"}]
    return jinja.from_string(plain).render(
        messages=messages, add_generation_prompt=begun, tools=None, documents=None, **tokens
    )


def _refuse(message: str) -> None:
    raise ValueError(message)


def _text(token: object) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

"""All checks, in the order in which they are shown."""

from pathlib import Path

from configs.judges import JudgeConfig
from configs.load import load_judges
from configs.schema import RunConfig
from orchestrator.doctor.access import check_ray_token, check_wandb
from orchestrator.doctor.devices import check_gpus, check_nccl
from orchestrator.doctor.findings import Check, Diagnosis, Patient
from orchestrator.doctor.judges import check_judges
from orchestrator.doctor.machine import check_disk, check_ports, check_shared_memory
from orchestrator.doctor.models import check_hub, check_models
from orchestrator.doctor.packages import check_packages
from orchestrator.doctor.sandbox import check_sandbox

CHECKS: tuple[Check, ...] = (
    check_packages,
    check_gpus,
    check_nccl,
    check_shared_memory,
    check_ports,
    check_disk,
    check_hub,
    check_models,
    check_ray_token,
    check_wandb,
    check_judges,
    check_sandbox,
)


def diagnose(patient: Patient, checks: tuple[Check, ...] | None = None) -> Diagnosis:
    """Run the checks, all unless told, in order."""
    chosen = CHECKS if checks is None else checks
    return Diagnosis(tuple(finding for check in chosen for finding in check(patient)))


def patient_of(recipe: RunConfig | None, judges_file: Path | None, run_dir: Path | None) -> Patient:
    """Return what is to be looked at; a file's judges come beside the recipe's.

    Raises:
        ConfigError: what is wrong with the file of judges.
    """
    judges: dict[str, JudgeConfig] = {} if recipe is None else dict(recipe.judges)
    if judges_file is not None:
        judges.update(load_judges(judges_file).judges)
    return Patient(recipe=recipe, judges=judges, run_dir=run_dir or Path("runs"))

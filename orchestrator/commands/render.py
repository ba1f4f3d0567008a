"""`braid render`: what Kubernetes is given for a recipe on an infra file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from configs.load import load_infra, load_recipe
from orchestrator.commands.options import Overrides


def render(
    recipe: Annotated[Path, typer.Argument(help="Recipe: what runs.")],
    infra: Annotated[
        Path, typer.Option("--infra", help="Infra file: where, e.g. k8s/infra/node-of-8.yaml.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for one file each and a kustomization; else stdout."),
    ] = None,
) -> None:
    """Write the manifests of a run; everything wrong with recipe and infra is said first."""
    from configs.validate import find_warnings
    from configs.validate_infra import warn_infra
    from orchestrator.deploy.infra_check import warn_recipe_on
    from orchestrator.deploy.render import render as render_bundle
    from orchestrator.deploy.render import write_bundle

    cfg, where = load_recipe(recipe, overrides or ()), load_infra(infra)
    bundle = render_bundle(cfg, where)
    for warning in (*find_warnings(cfg), *warn_infra(where), *warn_recipe_on(cfg, where)):
        sys.stderr.write(f"warning: {warning}\n")
    if out is None:
        sys.stdout.write(bundle.to_yaml())
        return
    for path in write_bundle(bundle, out):
        sys.stdout.write(f"{path}\n")

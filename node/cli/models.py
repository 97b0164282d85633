"""`mesh models`: list, add, remove, reload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from backends.registry import find_backends
from backends.types import MeshError
from node.catalog import CatalogError, ModelSpec, parse_model, read_catalog, read_model, write_model, yaml_path
from node.cli.console import CommandError, DataOption, JsonOption, NodeClient, err, mib, out, print_json, settings_of
from node.config import Settings
from node.datadir import running_url
from node.fetch import FetchError, digest_of, fetch, shown

app = typer.Typer(no_args_is_help=True, help="The models of a node: list them, add one, remove one, read them again.")


@app.command("list")
def list_models(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show the models in the data folder, also while no node runs."""
    settings = settings_of(data=data)
    catalog = read_catalog(settings.models_dir, find_backends())
    rows = [_facts(spec) for spec in catalog.models.values()]
    if as_json:
        print_json({"models": rows, "broken": catalog.broken})
        return
    table = Table("model", "backend", "size", Column("file", overflow="fold"), "notes")
    for row in rows:
        notes = ", ".join(note for note in ("embedded", "disabled", "pinned", "deterministic") if row[note])
        table.add_row(row["name"], row["backend"], mib(row["bytes"]), escape(row["path"]), notes)
    out.print(table)
    for name, reason in catalog.broken.items():
        err.print(f"[red]{escape(name)}[/] is left out: {escape(reason)}", highlight=False)


@app.command("add")
def add_model(
    source: Annotated[
        str,
        typer.Argument(
            help="A file, an http(s) address, hf://OWNER/REPO/FILE, or backend:NAME for one without weights.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What clients call it; default: from the file's name.")] = None,
    digest: Annotated[str | None, typer.Option(help="sha256:HEX that the file must have.")] = None,
    mmproj: Annotated[
        str | None,
        typer.Option(help="Of a vision model: the encoder of images that belongs to it; named like the model itself."),
    ] = None,
    context_size: Annotated[int | None, typer.Option(help="Tokens of one sequence.", min=16)] = None,
    slots: Annotated[int | None, typer.Option(help="Sequences at a time.", min=1)] = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Load at the start and keep.")] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a model: fetch it if need be (resumable), check it, write its YAML.

    **Examples**

    - `mesh models add ~/Downloads/qwen3-4b-q4_k_m.gguf --name qwen3`

    - `mesh models add hf://Qwen/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf`

    - `mesh models add smolvlm.gguf --mmproj mmproj-smolvlm.gguf` — a model that sees

    - `mesh models add backend:fake --name echo`
    """
    settings = settings_of(data=data)
    content: dict[str, Any] = {"name": name or _name_from(source)}
    try:
        parse_model(content)
    except CatalogError as error:
        raise CommandError(f"{error}. Choose one with --name.") from error
    target = yaml_path(settings.models_dir, content["name"])
    present = read_catalog(settings.models_dir, find_backends()).find(content["name"])
    if target.exists() or (present is not None and present.source is not None):
        taken_by = target if present is None else present.source
        raise CommandError(f"There is a model {content['name']} already: {taken_by}. Remove it first, or take --name.")
    if source.startswith("backend:"):
        content["backend"] = source.removeprefix("backend:")
    else:
        content |= _weights(source, digest, settings)
    if mmproj is not None:
        content["mmproj"] = _weights(mmproj, None, settings)["parameters"]["model"]
    options = {"context_size": context_size, "slots": slots, "pinned": pinned or None}
    content |= {field: value for field, value in options.items() if value is not None}
    spec = _write(target, content)
    _tell_node(settings)
    if as_json:
        print_json(_facts(spec))
    else:
        out.print(f"Added [bold]{spec.name}[/] ({spec.backend}). Its file: {escape(str(target))}", highlight=False)


@app.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    delete_file: Annotated[
        bool, typer.Option("--delete-file", help="Also delete the weights, if they lie in the data folder.")
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a model: its YAML, and its weights if asked to."""
    settings = settings_of(data=data)
    spec = read_catalog(settings.models_dir, find_backends()).find(name)
    if spec is None:
        raise CommandError(f"There is no model {name}. `mesh models list` shows those there are.")
    if spec.source is None:
        raise CommandError(f"{spec.name} comes with the program; it steps aside when you add a model of your own.")
    spec.source.unlink()
    deleted = None
    for path in (spec.path, spec.mmproj):
        if not path or not delete_file:
            continue
        if not Path(path).resolve().is_relative_to(settings.models_dir.resolve()):
            err.print(f"{path} lies outside the data folder and is kept.", highlight=False, markup=False)
        else:
            Path(path).unlink(missing_ok=True)
            deleted = deleted or path
    _tell_node(settings)
    if as_json:
        print_json({"removed": spec.name, "deleted": deleted})
    else:
        also = f" and {escape(deleted)}" if deleted else ""
        out.print(f"Removed [bold]{spec.name}[/]{also}.", highlight=False)


def _weights(source: str, digest: str | None, settings: Settings) -> dict[str, Any]:
    """Fetch or check the weights; the YAML fields that say where they are."""
    if source.startswith("file:"):
        source = url2pathname(urlsplit(source).path)
    if "://" not in source:
        path = Path(source).expanduser().absolute()
        if not path.is_file():
            raise CommandError(f"There is no file {path}.")
        if digest is not None:
            with err.status(f"checking {escape(path.name)}"):
                actual = digest_of(path)
            if actual != digest:
                raise CommandError(f"{path} has the digest {actual} instead of {digest}.")
        return {"parameters": {"model": str(path)}} | ({"digest": digest} if digest else {})
    _make_folder(settings.models_dir)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
    ) as bar:
        task = bar.add_task(escape(shown(source).rpartition("/")[2]), total=None)
        try:
            got = fetch(
                source,
                settings.models_dir,
                hub_url=settings.hub_url,
                digest=digest,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except FetchError as error:
            raise CommandError(str(error)) from error
    return {"uri": shown(source), "digest": got.digest, "parameters": {"model": got.path.name}}


def _write(target: Path, content: dict[str, Any]) -> ModelSpec:
    """Write the YAML; take it back if it cannot be read, or its backend does not like the weights' header."""
    backends = find_backends()
    _make_folder(target.parent)
    try:
        write_model(target, content)
        spec = read_model(target, backends)
        backends[spec.backend].needs(spec.load_spec(None))
    except (CatalogError, MeshError, OSError) as error:
        target.unlink(missing_ok=True)
        raise CommandError(f"This model cannot be added: {error}") from error
    return spec


@app.command("reload")
def reload_models(data: DataOption = None) -> None:
    """Let the running node read its model files again, and split anew what other nodes would now hold better.

    What runs on a model ends first; whoever comes next gets it as it is then.
    """
    NodeClient(settings_of(data=data)).post("/models/reload")
    out.print("The model files are read again.")


def _make_folder(folder: Path) -> None:
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # like the node itself: nobody else's business
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CommandError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error


def _tell_node(settings: Settings) -> None:
    if running_url(settings.data):
        NodeClient(settings).post("/models/reload")


def _name_from(source: str) -> str:
    if source.startswith("backend:"):
        return source.removeprefix("backend:")
    path = shown(source) if "://" in source else source
    return Path(path.rpartition("/")[2]).stem.lower()


def _facts(spec: ModelSpec) -> dict[str, Any]:
    path = Path(spec.path)
    return {
        "name": spec.name,
        "backend": spec.backend,
        "path": spec.path,
        "bytes": path.stat().st_size if spec.path and path.is_file() else 0,
        "embedded": spec.source is None,
        "disabled": spec.file.disabled,
        "pinned": spec.file.pinned,
        "deterministic": spec.file.deterministic,
    }

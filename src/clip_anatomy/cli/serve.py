"""`clip-anatomy serve`: the studio, a web page where the model is taken apart and put right."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clip_anatomy.cli.options import Device, Weights


def serve(
    store: Path | None = None,
    *,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    weights: Weights = None,
    device: Device = "auto",
    host: str = "127.0.0.1",
    port: int = 7860,
    token: str | None = None,
    open_it: Annotated[bool, Parameter(name="--open")] = False,
    no_ui: Annotated[bool, Parameter(name="--no-ui", negative="")] = False,
) -> int:
    """Open the studio: pictures, texts, heads and maps to click on; heads off and on, and what that does.

    Listens to this machine alone, fetches nothing, and stops on Ctrl-C.

        clip-anatomy serve
        clip-anatomy serve STORE --open
        clip-anatomy serve --model open_clip:ViT-B-32/laion2b_s34b_b79k

    Args:
        store: a store that `clip-anatomy index` made: gives means, accuracies and names of heads.
        model: as for the other verbs; by default the store's, or demo.
        host: address to listen at; other machines need --token.
        port: its port; 0 for any that is free.
        token: what other machines must know.
        open_it: open the browser.
        no_ui: the API alone, under /api/v1.

    Returns:
        Exit code 0.
    """
    import importlib
    import webbrowser

    from clip_anatomy.errors import BadInput, MissingExtra
    from clip_anatomy.number_ranges import whole
    from clip_anatomy.progress import note, shown

    try:
        uvicorn = importlib.import_module("uvicorn")
        from clip_anatomy.studio.server import check_host, create_app, listen
    except ImportError as error:
        raise MissingExtra("fastapi", "studio") from error
    from clip_anatomy.studio.session import Session

    check_host(host, token)
    whole("port", port, 0, 65_535)
    with shown(f"opening {model or store or 'demo'}"):
        from clip_anatomy.loading.load import load
        from clip_anatomy.store.store import Store
        from clip_anatomy.store.store_model import model_of

        opened = None if store is None else Store.open(store)
        if opened is None:
            clip = load(model or "demo", weights=weights, device=device)
        else:
            clip = model_of(opened, model, weights=weights, device=device)
        app = create_app(Session(clip, opened), host=host, token=token, page=not no_ui)
    try:
        listening = listen(host, port)
    except (OSError, UnicodeError) as error:  # a name that can be none of a machine
        raise BadInput(f"{host}:{port} cannot be listened at ({error}). Type another port: --port 0") from error
    address = f"http://{host}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    note(f"studio: {address}  (Ctrl-C stops it)")
    if open_it:
        webbrowser.open(address)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listening])
    return 0

"""Messages speak Python where they are raised, and the command line's language where it prints them; one function for both."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from test_verbs import with_groups_opened

import clip_anatomy
from clip_anatomy.cli.main import VERBS, main
from clip_anatomy.cli.wording import OPTIONS, in_cli_words
from clip_anatomy.errors import BadSpec, BadText

VISION = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 16, "head_width": 8}
TEXT = {"context_length": 12, "vocab_size": 100, "width": 16, "heads": 2, "layers": 2}
ROOT = Path(clip_anatomy.__file__).parent
TYPED = re.compile(r"(?<![\w-])--[a-z]")
SELECTIONS = {"words"}  # also a kind of heads, "words=TEXT"


def raised() -> Iterator[tuple[str, str]]:
    """Where each exception outside cli/ is made with a message, and the message, what is filled in as {}."""
    for path in sorted(ROOT.rglob("*.py")):
        if "cli" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) or (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id.endswith(("Error", "Bad", "Input"))
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", _words(node)


def _words(node: ast.AST) -> str:
    """Return the strings of a node, one after the other."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue():
            return "{}"
        case _:
            return "".join(_words(one) for one in ast.iter_child_nodes(node))


def written() -> Iterator[tuple[str, str]]:
    """Where each string outside cli/ stands that is no docstring, and the string, what is filled in as {}."""
    for path in sorted(ROOT.rglob("*.py")):
        if "cli" in path.relative_to(ROOT).parts:
            continue
        tree = ast.parse(path.read_text())
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in statements | inside:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", _words(node)


def options_of_verbs() -> set[str]:
    found: set[str] = set()
    for place, _ in VERBS.values():
        module, name = place.split(":")
        found |= with_groups_opened(getattr(import_module(module), name))[0].keys()
    return found


def test_what_python_says_names_no_option_but_in_a_command_to_type() -> None:
    messages = [*raised(), *((where, text) for where, text in written() if " " in text)]
    assert len(messages) > 5000
    odd = {
        where: text
        for where, text in messages
        if (option := TYPED.search(text))
        and not re.search(rf"(clip-anatomy ({'|'.join(VERBS)})|pip install|ray start) ", text[: option.start()])
    }
    assert odd == {}


def test_every_keyword_that_messages_name_and_a_verb_has_is_translated() -> None:
    verbs = options_of_verbs()
    assert verbs >= OPTIONS
    named = {
        name for _, text in raised() for name in re.findall(r"(?<![\w.'\"/={-])([a-z_]+)=(?=['\"\w{\s.,;:])", text)
    }
    assert named & verbs - OPTIONS - SELECTIONS == set()


@pytest.mark.parametrize(
    ("python", "typed"),
    [
        ("Type: device='cpu'", "Type: --device cpu"),
        ("type cost=2, most=10", "type --cost 2 --most 10"),
        ("Type cue='sky, water', or leave where= away", "Type --cue 'sky, water', or leave --where away"),
        ("Type size=336, size='336x448' or size='whole'.", "Type --size 336 --size 336x448 or --size whole."),
        ("Type llm='http://127.0.0.1:8000/v1', llm_model=NAME", "Type --llm http://127.0.0.1:8000/v1 --llm-model NAME"),
        ('Type texts="a cat\'s"; or approximate=True', 'Type --texts "a cat\'s"; or --approximate'),
        ("Type heads='role=ROLE'", "Type --heads role=ROLE"),
        ("Type over=Means.of(clip, images)", "Type over=Means.of(clip, images)"),
        (
            "heads are role=ROLE or words=TEXT; /out=3/size=4.png",
            "heads are role=ROLE or words=TEXT; /out=3/size=4.png",
        ),
        ("check(model, device='cpu')", "check(model, device='cpu')"),
    ],
)
def test_a_message_becomes_what_one_types(python: str, typed: str) -> None:
    assert in_cli_words(python) == typed


def test_python_and_the_command_line_say_the_same_each_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip_anatomy.index(clip_anatomy.load("demo", parity=False), "world:8:test", tmp_path / "s")
    with pytest.raises(
        BadSpec,
        match=r"^last='x': numbers of layers were expected. Type last='1,4' or last='none'$",
    ):
        clip_anatomy.probe(tmp_path / "s", last="x")
    assert main(["probe", str(tmp_path / "s"), "--last", "x"]) == 2
    assert "error: --last x: numbers of layers were expected. Type --last 1,4 or --last none" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_says_on_the_command_line_where_to_put_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    import tiny
    from safetensors.torch import save_file

    model = tiny.open_clip_model()
    config = {"model_cfg": {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: one.contiguous() for name, one in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors"
    )
    assert main(["heatmap", "--demo", "--model", str(tmp_path), "-t", "a bird", "--json"]) == 2
    said = capsys.readouterr().err
    assert (
        f"came without a tokenizer. Put the files of one (tokenizer.json, ...) into {tmp_path}, and its hf_tokenizer_name"
        in said
    )
    assert "load(" not in said
    with pytest.raises(BadText, match=r"Type: load\(model, tokenizer=...\), or put the files of one"):
        clip_anatomy.load(tmp_path).encode_text(["a bird"])

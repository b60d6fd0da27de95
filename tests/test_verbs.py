"""Every verb of the command line is one public function of the same name, with the same options and defaults."""

import inspect
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import clip_anatomy as ca
from clip_anatomy.cli.main import VERBS

NO_FUNCTION = {"demo", "serve"}  # explain on the bundled pictures; a web page
VERBS_WITH_FUNCTIONS = [verb for verb in VERBS if verb not in NO_FUNCTION]
HERE_ONLY = {  # what only a command line needs
    "out": "where files are written; in Python results are saved",
    "as_json": "how results are printed",
    "strict": "the exit code; in Python skip_bad",
    "model": "how the model is opened; in Python `load` does",
    "weights": "likewise",
    "device": "likewise",
    "through": "likewise; in Python `Alignment.load(folder).read(vit)`",
    "dtype": "likewise",
    "demo": "the bundled pictures",
    "address": 'which cluster; in Python open_engine("ray", address=...)',
    "pictures": "which files are written; in Python found.save(folder, pictures=...)",
}
HERE_ONLY_OF_VERB: dict[str, set[str]] = {
    "search": {"captions"},  # search_captions
    "explain": {"text_tower"},  # explain_text
    "bench": {"list_them", "classes", "dtype"},  # what there is to ask for; how the model is opened
    "pairs": {"images", "texts"},  # in Python the two are a and b
    "repair": {"yes"},  # whether a person is asked; in Python RepairResult.selecting
    "heatmap": {
        "layers",
        "words",
        "colours",
        "sanity",
        "sanity_pictures",
        "film",
        "tiles",
    },  # layer_maps, word_maps, how it is drawn, sanity, film_maps, tiled_maps
    "segment": {"film", "tiles"},  # film_maps and tiled_maps, saved with threshold=
}


def options_of(verb: str) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter], dict[str, Any]]:
    module, name = VERBS[verb][0].split(":")
    command = getattr(import_module(module), name)
    typed, hints = with_groups_opened(command)
    return typed, dict(inspect.signature(getattr(ca, verb)).parameters), hints


def with_groups_opened(command: Any) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Return a verb's options and their types, members of a group of options in place of the group."""
    hints, typed = get_type_hints(command), {}
    for name, one in inspect.signature(command).parameters.items():
        if is_dataclass(hints[name]):
            typed |= inspect.signature(hints[name]).parameters
            hints |= get_type_hints(hints[name])
        else:
            typed[name] = one
    return typed, hints


def plain(default: Any) -> Any:
    return str(default) if isinstance(default, Path) else default


def repeats(hint: Any) -> bool:
    """Whether an option may be typed several times: it has no default of its own, and None means the function's."""
    return any(get_origin(one) in (list, tuple) for one in (hint, *get_args(hint)))


def test_every_verb_is_a_public_function() -> None:
    assert [verb for verb in VERBS_WITH_FUNCTIONS if not callable(getattr(ca, verb, None))] == []


@pytest.mark.parametrize("verb", VERBS_WITH_FUNCTIONS)
def test_options_that_both_have_are_equal(verb: str) -> None:
    typed, called, hints = options_of(verb)
    different = {
        name: (one.default, called[name].default)
        for name, one in typed.items()
        if name in called
        and inspect.Parameter.empty not in (one.default, called[name].default)
        and plain(one.default) != plain(called[name].default)
        and not (one.default is None and repeats(hints[name]))
    }
    assert different == {}


@pytest.mark.parametrize("verb", VERBS_WITH_FUNCTIONS)
def test_no_option_is_of_the_command_line_alone_unless_it_is_listed(verb: str) -> None:
    typed, called, _ = options_of(verb)
    listed = set(HERE_ONLY) | HERE_ONLY_OF_VERB.get(verb, set())
    assert {name for name in typed if name not in called} - listed == set()


def test_lists_hold_nothing_that_is_gone() -> None:
    for verb, names in HERE_ONLY_OF_VERB.items():
        typed, called, _ = options_of(verb)
        assert names <= set(typed)
        assert not names & set(called)

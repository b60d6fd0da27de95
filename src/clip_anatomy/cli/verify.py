"""`clip-anatomy verify`: is a store still what was written?"""

from clip_anatomy.cli.options import AsJson, StoreFolder, print_result


def verify(store: StoreFolder, *, as_json: AsJson = False) -> int:
    """Read every file of a store and compare it with the checksums taken when it was written.

    Finds flipped bytes, missing files, rows without data and data without rows.

    Returns:
        Exit code: 0 all is well, 1 something is wrong.
    """
    from clip_anatomy.progress import note, shown

    with shown(f"reading {store}") as tell:
        from clip_anatomy.store.verify import verify as verify_store

        result = verify_store(store, tell)
    print_result(result, as_json=as_json)
    if not result.holds:
        note(
            "clip-anatomy: put a copy of the named files in their place; without one, delete the store and index again: "
            f"clip-anatomy index SOURCE {store}"
        )
    return 0 if result.holds else 1

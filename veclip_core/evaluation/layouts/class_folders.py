"""A folder a class with its pictures, as ImageNet's and ImageNetV2's validation pictures lie."""

from veclip_core.evaluation.layouts.found import Found, Labels, refuse
from veclip_core.evaluation.layouts.listing import Listing, digests
from veclip_core.evaluation.set_catalogue import SetSpec
from veclip_core.evaluation.sets import EvaluationSetError, PicturePlace

LABEL = "class"
"""What a set's only labels are called."""
SPLIT_FOLDERS = ("test", "val", "validation", "train")


def looks_so(listing: Listing) -> bool:
    return any("/" in name for name in listing.pictures)


def read(name: str, spec: SetSpec, listing: Listing) -> Found:
    """Classes are the folders, in the order of their names (numbers by value); pictures in that order.

    A folder inside a class belongs to it. An empty one is a class without a picture.
    """
    root = _split_of(name, spec, listing)
    pictures = [file for file in listing.pictures if file.startswith(root)]
    outside = [file for file in pictures if "/" not in file[len(root) :]]
    refuse(
        listing.folder, outside, f"{len(outside):,} pictures lie beside the class folders",
        "Put each into the folder of its class, or add a table of texts.",
    )  # fmt: skip
    classes = classes_of(name, spec, listing)
    number_of = {one: number for number, one in enumerate(classes)}
    of_picture = [number_of[file[len(root) :].partition("/")[0]] for file in pictures]
    order = sorted(range(len(pictures)), key=lambda row: (of_picture[row], pictures[row]))
    files = [listing.folder / pictures[row] for row in order]
    found = Found(labels={LABEL: Labels([of_picture[row] for row in order], classes)})
    for row, file, sha256 in zip(order, files, digests(files, name), strict=True):
        found.add(pictures[row], PicturePlace(str(file)), sha256)
    return found


def classes_of(name: str, spec: SetSpec, listing: Listing) -> list[str]:
    """The folders, empty ones too."""
    folder = listing.folder / _split_of(name, spec, listing)
    classes = [one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
    numbers = all(one.isascii() and one.isdigit() for one in classes)
    return sorted(classes, key=(lambda one: (int(one), one)) if numbers else None)


def _split_of(name: str, spec: SetSpec, listing: Listing) -> str:
    """The folder inside that holds the class folders: that of the split where the folders are those of splits."""
    tops = {file.partition("/")[0] for file in listing.pictures}
    if spec.split:
        if spec.split not in tops:
            raise EvaluationSetError(
                f"{name}: {listing.folder} has no folder {spec.split!r} with pictures, the split told"
            )
        return f"{spec.split}/"
    if tops <= set(SPLIT_FOLDERS):
        return next(f"{one}/" for one in SPLIT_FOLDERS if one in tops)
    return ""

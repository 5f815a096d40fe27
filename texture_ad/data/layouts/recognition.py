"""Which layout a folder has: told by itself, or given by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from texture_ad.data.layouts.files import entries, files_below, unread
from texture_ad.data.layouts.flat import NORMAL, Places, flat, named_folders
from texture_ad.data.layouts.public import btad, good_name, kolektorsdd2, mvtec, mvtec2, side_by_side, visa
from texture_ad.data.layouts.samples import Layout, with_left_out
from texture_ad.data.layouts.table import read_rows, table_layout
from texture_ad.errors import ParameterError, UserError


@dataclass(frozen=True)
class Known:
    """Describe a layout of folders that is told apart by itself.

    Args:
        title: of the data set, before its category.
        sign: what a folder of this layout has.
        recognise: returns whether a folder has it.
        read: lists the images of such a folder.
    """

    title: str
    sign: str
    recognise: Callable[[Path], bool]
    read: Callable[[Path], Layout]


def _has(*names: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a folder has all of these sub-folders."""
    return lambda folder: all((folder / name).is_dir() for name in names)


def _is_mvtec(folder: Path) -> bool:
    return good_name(folder) not in (None, "ok") and not (folder / "test_public").is_dir()


LAYOUTS = {
    "mvtec": Known("MVTec AD", "train/good", _is_mvtec, mvtec),
    "mvtec2": Known("MVTec AD 2", "train/good and test_public", _has("train/good", "test_public"), mvtec2),
    "visa": Known("VisA", "Data/Images/Normal", _has("Data/Images/Normal"), visa),
    "btad": Known("BTAD", "train/ok", lambda folder: good_name(folder) == "ok", btad),
    "kolektorsdd2": Known(
        "KolektorSDD2",
        "train with NAME_GT.png beside NAME.png",
        lambda folder: bool(side_by_side(folder / "train")),
        kolektorsdd2,
    ),
    "flat": Known("folder", "folder such as OK and NG", lambda folder: bool(named_folders(folder, NORMAL)), flat),
}


def recognise(folder: Path) -> str:
    """Return the name of the layout that a folder has.

    Raises:
        ParameterError: of none of `LAYOUTS`, or of several; the message says what was expected.
    """
    names = [name for name, known in LAYOUTS.items() if known.recognise(folder)]
    if len(names) == 1:
        return names[0]
    if names:
        seen = " and as ".join(f"{name} ({LAYOUTS[name].sign})" for name in names)
        raise ParameterError("layout", "auto", f"{folder} is laid out as {seen}")
    inside = [p.name for p in entries(folder) if p.is_dir() and any(known.recognise(p) for known in LAYOUTS.values())]
    hint = f"; {inside[0]} in it has one of them: give that folder" if inside else ""
    signs = ", ".join(f"{known.sign} ({name})" for name, known in LAYOUTS.items())
    raise ParameterError("layout", "auto", f"{folder} has no {signs}{hint}")


def scan(
    folder: Path,
    layout: str = "auto",
    table: str | None = None,
    normal: Places | None = None,
    anomalous: Places | None = None,
    masks: Places | None = None,
) -> Layout:
    """List the images of one category.

    Args:
        folder: of the category; relative paths start from it.
        layout: a name of `LAYOUTS`, "table", or "auto": told by what is given, or by the folder itself.
        table: CSV file with a row for each image, for the layout "table"; see `read_rows`. Its own path is not
            relative to `folder`, those in it are.
        normal: places of normal images, for the layout "flat", as are the next two; see `flat`.
        anomalous: places of anomalous images.
        masks: places of masks.

    Raises:
        ParameterError: parameters of another layout than the folder's, or a layout that overlooks its test images.
        UserError: the layout is not as described; the message names the first path that is wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with images")
    places = {"normal": normal, "anomalous": anomalous, "masks": masks}
    name = layout_name(folder, layout, table, places)
    if name == "table":
        return enough(folder, _from_table(folder, table))
    found = flat(folder, **places) if name == "flat" else LAYOUTS[name].read(folder)
    if not found.test and not any(places.values()):
        _check_fits(folder, name)
    return enough(folder, with_left_out(found, files_below(folder)))


def _check_fits(folder: Path, name: str) -> None:
    """Check that a layout which finds no test images in a folder is that of the folder, or that no other finds some.

    Raises:
        ParameterError: another, which the folder has instead, does.
    """
    if LAYOUTS[name].recognise(folder):
        return
    for other, known in LAYOUTS.items():
        if known.recognise(folder) and (tested := len(known.read(folder).test)):
            problem = f"finds no test images in {folder}, where {other} ({known.sign}) finds {tested}; give that layout"
            raise ParameterError("layout", name, problem)


def layout_name(
    folder: Path, layout: str, table: str | None = None, places: Mapping[str, Places | None] | None = None
) -> str:
    """Return the name of the layout that is given, or that the folder has; see `scan`.

    Raises:
        ParameterError: a table or places in another layout than theirs; or no layout is given, and the folder has none
            or several.
    """
    given = {name: place for name, place in (places or {}).items() if place is not None}
    if layout == "auto":
        layout = "table" if table else "flat" if given else recognise(folder)
    if table and layout != "table":
        raise ParameterError("table", table, f"is for the layout table, not for {layout}")
    if given and layout != "flat":
        raise ParameterError(*next(iter(given.items())), f"is for the layout flat, not for {layout}")
    return layout


def _from_table(folder: Path, table: str | None) -> Layout:
    """Return the layout that a table describes; what lies beside its images is left out."""
    if not table:
        raise ParameterError("table", table, "no file was given, and the layout table needs one")
    path = Path(table).expanduser()
    found = table_layout(path, read_rows(path), folder)
    beside = sorted({sample.path.parent for sample in found.samples})
    return with_left_out(found, (file for place in beside for file in entries(place) if file.is_file()))


def enough(source: Path, layout: Layout) -> Layout:
    """Return a layout that has normal images for training and calibration.

    Raises:
        UserError: too few; the message names files of formats that can't be read.
    """
    needed = 1 if layout.calibration else 2
    if len(layout.train) < needed:
        problem = f"{len(layout.train)} normal images for training; at least {needed} are needed"
        raise UserError(f"{source}: {problem}{unread(layout.left_out.get('files', []))}")
    return layout

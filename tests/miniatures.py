"""A few small images in every layout. A defect is a black square, so that every image tells its own label."""

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

SIZE = 64
NORMAL = 8  # images without a defect in a data set of `MINIATURES`, beside two of its calibration
ANOMALOUS = 3


def draw(path: Path, defect: bool = False, mask: Path | None = None) -> Path:
    """Save an image of noise that is nowhere black but in its defect, and its mask if asked for."""
    seed = crc32("/".join(path.parts[-3:]).encode())
    pixels = np.random.default_rng(seed).integers(100, 156, (SIZE, SIZE), np.uint8)
    marked = np.zeros((SIZE, SIZE), np.uint8)
    if defect:
        top, left = np.random.default_rng(seed).integers(8, 40, 2)
        marked[top : top + 16, left : left + 16] = 255
    pixels[marked > 0] = 0
    for file, values in {path: pixels, mask: marked}.items():
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
    return path


def several(folder: Path, count: int, mask: str = "", suffix: str = ".png") -> None:
    """Save images 0, 1, ... in a folder; defective where `mask`, such as "../masks/{}.png", says where masks lie."""
    for i in range(count):
        draw(folder / f"{i}{suffix}", bool(mask), folder / mask.format(i) if mask else None)


def mvtec(root: Path) -> Path:
    """Make MVTec AD's layout."""
    several(root / "train/good", 6)
    several(root / "test/good", 2)
    several(root / "test/hole", 3, "../../ground_truth/hole/{}_mask.png")
    return root


def mvtec2(root: Path) -> Path:
    """Make MVTec AD 2's layout, with calibration images and private test images."""
    several(root / "train/good", 6)
    several(root / "validation/good", 2)
    several(root / "test_public/good", 2)
    several(root / "test_public/bad", 3, "../ground_truth/bad/{}_mask.png")
    several(root / "test_private", 2)
    several(root / "test_private_mixed", 1)
    return root


def visa(root: Path) -> Path:
    """Make VisA's layout without its split."""
    several(root / "Data/Images/Normal", 8, suffix=".JPG")
    several(root / "Data/Images/Anomaly", 3, "../../Masks/Anomaly/{}.png")
    (root / "image_anno.csv").write_text("image,label\n")
    return root


def btad(root: Path) -> Path:
    """Make BTAD's layout."""
    several(root / "train/ok", 6, suffix=".bmp")
    several(root / "test/ok", 2, suffix=".bmp")
    several(root / "test/ko", 3, "../../ground_truth/ko/{}.png", ".bmp")
    return root


def kolektorsdd2(root: Path) -> Path:
    """Make KolektorSDD2's layout, with one anomalous training image and one without a label."""
    for folder, normal, anomalous in (("train", 6, 1), ("test", 2, 3)):
        for i in range(normal + anomalous):
            draw(root / folder / f"{i}.png", i >= normal, root / folder / f"{i}_GT.png")
    draw(root / "train/unlabelled.png")
    return root


def flat(root: Path) -> Path:
    """Make folders OK, NG and MASK."""
    several(root / "OK", 8)
    several(root / "NG", 3, "../MASK/{}.png")
    return root


def table(root: Path) -> Path:
    """Make a table images.csv that divides its images."""
    rows = ["path,label,mask,split,group"]
    for i in range(11):
        defect = i >= 8
        draw(root / f"shots/{i}.png", defect, root / f"marks/{i}.png" if defect else None)
        mask = f"marks/{i}.png" if defect else ""
        rows.append(f"shots/{i}.png,{'hole' if defect else 0},{mask},{'train' if i < 6 else 'test'},")
    (root / "images.csv").write_text("\n".join(rows) + "\n")
    return root


MINIATURES: dict[str, Callable[[Path], Path]] = {
    function.__name__: function for function in (mvtec, mvtec2, visa, btad, kolektorsdd2, flat, table)
}

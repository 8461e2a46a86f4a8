"""Looking at datasets: what one holds, and whether its store is sound."""

from pathlib import Path

from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.data.describe import describe
from qam_lightning.data.labels import damaged_labels
from qam_lightning.data.store import Store
from qam_lightning.evaluation.dataset_picture import draw_dataset
from qam_lightning.util.errors import UserError


def info(data: ChunkDataModule, picture: str | None = None) -> int:
    """Prints what a dataset holds and draws it; returns the exit status.

    Args:
        data: The settings that name the dataset.
        picture: Image to write; beside the store if not given.

    Raises:
        UserError: The data can be neither found nor fetched, or the picture not written.
    """
    found = describe(data)
    print("\n".join(found.lines()))
    source = data.source()
    place = source.store.with_suffix(".png") if source else Path(f"{found.name}.png")
    path = Path(picture).expanduser() if picture else place
    returns = {facts.task: facts.returns for facts in found.tasks}
    try:
        draw_dataset(path, found.lines()[0], found.positions, found.walls, returns)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write the picture {path}: {error}; choose another picture"
        ) from None
    print(path)
    return 0


def verify(data: ChunkDataModule) -> int:
    """Checks a dataset's stores against their checksums and sources; returns the exit status.

    Args:
        data: The settings that name the dataset.

    Raises:
        UserError: There is no store, or one that cannot even be opened.
    """
    wrong = []
    for validation in (False, True):
        source = data.source(validation)
        if source is None or (validation and not source.store.exists()):
            continue
        if not source.store.exists():
            raise UserError(f"{source.store} does not exist; training or `data info` makes it")
        store = Store(source.store)
        found = store.verify(source.files) + damaged_labels(store)
        print("\n".join(found) or f"{source.store}: good")
        wrong += found
    return 1 if wrong else 0

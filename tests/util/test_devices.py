import pytest

from qam_lightning.util.devices import device_count


@pytest.mark.parametrize(
    ("devices", "count"),
    [
        *((1, 1), ("1", 1), ([3], 1), ("3,", 1)),
        *((2, 2), (" 2 ", 2), ([0, 2], 2), ((0, 2), 2), ("0, 2", 2)),
        *((0, None), ("0", None), (-1, None), ("-1", None), ("auto", None), ("0,x", None)),
        *(("", None), (",", None), ([], None), (True, None), (None, None), (1.0, None)),
    ],
)
def test_devices_are_counted_in_every_spelling(devices: object, count: int | None) -> None:
    assert device_count(devices) == count

from tests.online.conftest import arguments, data  # noqa: F401  (fixtures)

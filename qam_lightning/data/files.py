"""Where OGBench's dataset files are, and whether they are what they should be."""


def dataset_name(env: str, dataset: str) -> str:
    """OGBench's name of a dataset, such as ``scene-play-v0``."""
    return f"{env}-{dataset}-v0"

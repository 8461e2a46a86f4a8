"""``generate``: collect a dataset with OGBench's scripted oracles."""

from qam_lightning.cli.dispatch import called
from qam_lightning.cli.help import page
from qam_lightning.util.settings import settings_of


def main(argv: list[str]) -> int:
    """Collect a dataset as the arguments say; return the exit code."""
    settings = settings_of("qam_lightning.data.generate.generate")
    if {"-h", "--help"} & set(argv):
        groups = {"options": settings}
        text = "Collect a dataset in OGBench's format with OGBench's scripted oracles."
        print(page(called("generate"), text, groups), end="", flush=True)
        raise SystemExit(0)
    from jsonargparse import ArgumentParser

    from qam_lightning.cli.explain import parsed
    from qam_lightning.cli.values import joined, plain
    from qam_lightning.data.generate import generate

    parser = ArgumentParser(prog=called("generate"), exit_on_error=False)
    parser.add_function_arguments(generate)
    given = [plain(flag, settings, ["directory"]) for flag in joined(argv)]
    options = parsed(parser, given)
    for path in generate(**options.as_dict()):
        print(path)
    return 0

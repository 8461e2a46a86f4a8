"""``--help`` without importing what is described; see `util.settings`."""

import argparse
import textwrap

from qam_lightning.util.settings import Setting


def page(prog: str, text: str, groups: dict[str, dict[str, Setting]]) -> str:
    """Return the help of a command.

    Args:
        prog: how the command is called.
        text: what it does.
        groups: title -> flag without dashes -> setting.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options]",
        description=textwrap.dedent(text).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for title, settings in groups.items():
        group = parser.add_argument_group(title)
        for flag, setting in settings.items():
            group.add_argument(
                f"--{flag}",
                metavar=flag.rpartition(".")[2].upper(),
                help=f"{setting.help} ({_facts(setting)})".replace(" ()", "").replace("%", "%%"),
            )
    return parser.format_help()


def _facts(setting: Setting) -> str:
    default = "required" if setting.default is None else f"default: {setting.default}"
    return ", ".join(filter(None, (setting.type, default if setting.default != "" else "")))

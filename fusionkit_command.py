"""The command `fusionkit`. It stands outside of the package, and runs when another project's package hides ours."""

import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().with_name("fusionkit")


def main() -> int:
    try:
        import fusionkit
        from fusionkit.cli import main as run
    except (ImportError, AttributeError) as error:
        return _report(f"{type(error).__name__}: {error}")
    if Path(fusionkit.__file__).resolve().parent != PACKAGE:
        return _report(f"`import fusionkit` finds {fusionkit.__file__}")
    return run()


def _report(what: str) -> int:
    """What is wrong, and which distributions of other projects have files in our place."""
    spec = importlib.util.spec_from_file_location("foreign", PACKAGE / "foreign.py")
    foreign = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(foreign)
    print(f"fusionkit: this is not the package of {foreign.OURS} in {PACKAGE}: {what}", file=sys.stderr)
    for name, in_place in foreign.distributions():
        if in_place:
            print(f"  {name} is another project's. Run: {foreign.cure(name)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""Finds the packages and builds the native code; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))  # an isolated build does not put this folder on the path
import build_native

NATIVE_PACKAGE = "fusionkit_backends.cpu"


class BuildNative(build_ext):
    """Hands the work to build_native; in place for editable installs, else into the wheel's folder."""

    def run(self) -> None:
        try:
            build_native.build(self._package_dir(self.inplace))
        except build_native.BuildError as error:
            sys.exit(f"fusionkit: {error}")

    def _package_dir(self, inplace: bool) -> Path:
        if inplace:
            return Path(self.get_finalized_command("build_py").get_package_dir(NATIVE_PACKAGE))
        return Path(self.build_lib, *NATIVE_PACKAGE.split("."))

    def get_output_mapping(self) -> dict[str, str]:
        """The file of a wheel -> the file of the source tree that stands for it in an editable install."""
        built, in_place = self._package_dir(False), self._package_dir(True)
        return {str(built / name): str(in_place / name) for name in build_native.outputs()} if self.inplace else {}

    def get_outputs(self) -> list[str]:
        return [str(self._package_dir(False) / name) for name in build_native.outputs()]


backends = {
    f"fusionkit_backends.{init.parent.name}": str(init.parent) for init in Path("backends").glob("*/__init__.py")
}
native_sources = [str(path) for path in Path("backends").glob("*/csrc/**/*") if path.suffix in (".cc", ".h")]

setup(
    packages=[
        *find_packages(include=["fusionkit", "fusionkit.*"]),
        *(
            package
            for name, folder in backends.items()
            for package in [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
        ),
    ],
    package_dir=backends,
    ext_modules=[Extension(f"{NATIVE_PACKAGE}._native", sources=[], depends=sorted(native_sources))],
    cmdclass={"build_ext": BuildNative},
)

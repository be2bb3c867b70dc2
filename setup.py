"""Finds the packages and builds the native code; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))  # an isolated build does not put this folder on the path
from native import build as native

# Package -> what builds its native files in a folder, and the files' names there.
NATIVE_PACKAGES = {
    "fusionkit_backends.cpu": (native.build, native.outputs),
    "fusionkit.parallel": (native.build_parallel, native.parallel_outputs),
    "fusionkit_emulator": (native.build_emulator, native.emulator_outputs),
}


class BuildNative(build_ext):
    """Hands the work to native/build.py; in place for editable installs, else into the wheel's folder."""

    def run(self) -> None:
        try:
            for package, (build, _) in NATIVE_PACKAGES.items():
                build(self._package_dir(package, self.inplace))
        except native.BuildError as error:
            sys.exit(f"fusionkit: {error}")

    def _package_dir(self, package: str, inplace: bool) -> Path:
        if inplace:
            return Path(self.get_finalized_command("build_py").get_package_dir(package))
        return Path(self.build_lib, *package.split("."))

    def _files(self, inplace: bool) -> list[str]:
        return [
            str(self._package_dir(package, inplace) / name)
            for package, (_, outputs) in NATIVE_PACKAGES.items()
            for name in outputs()
        ]

    def get_output_mapping(self) -> dict[str, str]:
        """The file of a wheel -> the file of the source tree that stands for it in an editable install."""
        return dict(zip(self._files(False), self._files(True), strict=True)) if self.inplace else {}

    def get_outputs(self) -> list[str]:
        return self._files(False)


# Package as it is imported -> its folder. The backends share a namespace, so that others can add to it.
FOLDERS = {
    "fusionkit": "fusionkit",
    "fusionkit_emulator": "emulator",
    "fusionkit_bench": "bench",
    "fusionkit_planner": "planner",
    **{f"fusionkit_backends.{init.parent.name}": str(init.parent) for init in Path("backends").glob("*/__init__.py")},
}
native_sources = [
    str(path)
    for folder in ("backends/*", "fusionkit/*", "emulator")
    for path in Path().glob(f"{folder}/csrc/**/*")
    if path.suffix in (".cc", ".h")
]

setup(
    packages=[
        package
        for name, folder in FOLDERS.items()
        for package in [name, *(f"{name}.{sub}" for sub in find_packages(folder))]
    ],
    package_dir=FOLDERS,
    py_modules=["fusionkit_command"],
    ext_modules=[Extension("fusionkit_backends.cpu._native", sources=[], depends=sorted(native_sources))],
    cmdclass={"build_ext": BuildNative},
)

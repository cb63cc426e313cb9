"""Which folder becomes which package: the code folders of the top level are packages of `zoo`.

In a checkout `zoo/kernels` and its like are links to them. A clone on Windows or an unpacked archive may lack them:
wheels and sdists do without, an editable install cannot.
"""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
ROOMS = ("kernels", "layers", "train", "checkpoints", "benchmarks")


class EditableWheel(editable_wheel):
    """Points to the checkout itself, where the links stand for the packages."""

    def run(self) -> None:
        if missing := [f"zoo/{room}" for room in ROOMS if not (ROOT / "zoo" / room / "__init__.py").exists()]:
            raise SetupError(
                f"an editable install needs the symbolic links {', '.join(missing)}, which this copy of the repository "
                "lacks: clone it with `git clone -c core.symlinks=true`, or install it without -e"
            )
        self.distribution.package_dir = {}
        super().run()


own = find_packages(include=["zoo", "zoo.*"], exclude=[f"zoo.{room}{end}" for room in ROOMS for end in ("", ".*")])
rooms = [f"zoo.{package}" for room in ROOMS for package in find_packages(include=[room, f"{room}.*"])]
setup(
    packages=own + rooms,
    package_dir={f"zoo.{room}": room for room in ROOMS},
    cmdclass={"editable_wheel": EditableWheel},
)
